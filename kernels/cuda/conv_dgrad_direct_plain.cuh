// Gradient of the input from its definition: the twin of the tiled kernels, right for everything.
//
//   dx[n,c,d,h,w] = sum_{t,r,s,k} dy[n, k, o, p, q] * w[k, c, t, r, s]
//   over the taps that hit: d + pd - t*dl = o*st with 0 <= o < O, and so on per axis
//
// Mapping   one thread per element of dx in memory order, grid-stride: a gather, nothing is
//           scattered and no zeros are inserted; no shared memory.
// Layouts   any dense one, through strides. Dtypes f32, f64, bf16, f16 (16-bit sums in fp32).
// Padding   a tap that misses dy is skipped: neither read nor multiplied.
// Cost      2 * macs FLOPs, plus a division per tap and axis; bound by load issue, a few percent
//           of the FMA rate. Not measured on a GPU.
// Determinism   one thread adds taps (t,r,s) outer, filters inner, always in this order.
// Source    the definition.
#pragma once
#include "conv_direct_tensors.cuh"
#include "conv_fprop_direct_plain.cuh"
#include "detail/scalar.cuh"

namespace fastconv::cuda {

// The output position whose tap is at input position `in`, or -1.
__device__ __forceinline__ int64_t output_of_tap(const ConvProblem& problem, int axis, int64_t in,
                                                 int64_t tap) {
  const int64_t moved = in + problem.padding[axis] - tap * problem.dilation[axis];
  if (moved < 0 || moved % problem.stride[axis] != 0) return -1;
  const int64_t out = moved / problem.stride[axis];
  return out < problem.out[axis] ? out : -1;
}

template <class scalar_t>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocksPerSm)
    conv_dgrad_direct_plain_kernel(const ConvProblem problem, const DenseTensor x_at,
                                   const DenseTensor w_at, const DenseTensor y_at,
                                   const scalar_t* __restrict__ dy, const scalar_t* __restrict__ w,
                                   scalar_t* __restrict__ dx) {
  const int64_t channels = problem.channels_per_group();
  const int64_t filters = problem.filters_per_group();
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPlainThreads;
  const int64_t elements = x_at.elements();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x; i < elements;
       i += threads) {
    int64_t at[5];  // n, c, d, h, w
    x_at.coordinates(i, at);
    const int64_t group = at[1] / channels;
    const scalar_t* const dy_group = dy + at[0] * y_at.stride[0] + group * filters * y_at.stride[1];
    const scalar_t* const w_channel =
        w + group * filters * w_at.stride[0] + (at[1] - group * channels) * w_at.stride[1];
    acc_t<scalar_t> sum = 0;
    for (int64_t t = 0; t < problem.filter[0]; ++t) {
      const int64_t o = output_of_tap(problem, 0, at[2], t);
      if (o < 0) continue;
      for (int64_t r = 0; r < problem.filter[1]; ++r) {
        const int64_t p = output_of_tap(problem, 1, at[3], r);
        if (p < 0) continue;
        for (int64_t s = 0; s < problem.filter[2]; ++s) {
          const int64_t q = output_of_tap(problem, 2, at[4], s);
          if (q < 0) continue;
          const scalar_t* dy_tap =
              dy_group + o * y_at.stride[2] + p * y_at.stride[3] + q * y_at.stride[4];
          const scalar_t* w_tap =
              w_channel + t * w_at.stride[2] + r * w_at.stride[3] + s * w_at.stride[4];
          for (int64_t k = 0; k < filters; ++k)
            sum += to_acc(dy_tap[k * y_at.stride[1]]) * to_acc(w_tap[k * w_at.stride[0]]);
        }
      }
    }
    dx[i] = from_acc<scalar_t>(sum);
  }
}

}  // namespace fastconv::cuda
