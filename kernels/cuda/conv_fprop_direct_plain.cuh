// Forward convolution from its definition: the twin that the tiled kernels are read against, and
// the one that runs what they refuse.
//
//   y[n,k,o,p,q] = b[k] + sum_{t,r,s,c} x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s]
//
// Mapping   one thread per element of y in memory order, grid-stride; no shared memory.
// Layouts   any dense one, through strides. Dtypes f32, f64, bf16, f16 (16-bit sums in fp32).
// Padding   a tap outside x is skipped: neither read nor multiplied.
// Cost      2 * macs FLOPs; two loads per multiply-add, served by L1 and L2 where neighbours share
//           them: bound by load issue, a few percent of the FMA rate. Not measured on a GPU.
// Statistics    of y take a pass of their own: a block's outputs are neighbours in memory, of parts
//               of several channels.
// Determinism   one thread adds taps (t,r,s) outer, channels inner, always in this order.
// Source    the definition.
#pragma once
#include "conv_direct_tensors.cuh"
#include "detail/epilogue.cuh"
#include "detail/scalar.cuh"

namespace fastconv::cuda {

constexpr int kPlainThreads = 128;
constexpr int kPlainBlocksPerSm = 5;  // up to 96 registers: 64-bit coordinates of two tensors

template <class scalar_t>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocksPerSm)
    conv_fprop_direct_plain_kernel(const ConvProblem problem, const DenseTensor x_at,
                                   const DenseTensor w_at, const DenseTensor y_at,
                                   const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
                                   const scalar_t* __restrict__ bias,
                                   const StoreEpilogue<acc_t<scalar_t>> epilogue,
                                   const int64_t skipped, scalar_t* __restrict__ y) {
  const int64_t channels = problem.channels_per_group();
  const int64_t filters = problem.filters_per_group();
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPlainThreads;
  const int64_t elements = y_at.elements();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x; i < elements;
       i += threads) {
    int64_t at[5];  // n, k, o, p, q
    y_at.coordinates(i, at);
    const int64_t group = at[1] / filters;
    const scalar_t* const x_group = x + at[0] * x_at.stride[0] + group * channels * x_at.stride[1];
    const scalar_t* const w_filter = w + at[1] * w_at.stride[0];
    acc_t<scalar_t> sum = bias == nullptr ? acc_t<scalar_t>(0) : to_acc(bias[at[1]]);
    for (int64_t t = 0; t < problem.filter[0]; ++t) {
      const int64_t d = at[2] * problem.stride[0] - problem.padding[0] + t * problem.dilation[0];
      if (d < 0 || d >= problem.in[0]) continue;
      for (int64_t r = 0; r < problem.filter[1]; ++r) {
        const int64_t h = at[3] * problem.stride[1] - problem.padding[1] + r * problem.dilation[1];
        if (h < 0 || h >= problem.in[1]) continue;
        for (int64_t s = 0; s < problem.filter[2]; ++s) {
          const int64_t v =
              at[4] * problem.stride[2] - problem.padding[2] + s * problem.dilation[2];
          if (v < 0 || v >= problem.in[2]) continue;
          const scalar_t* x_tap =
              x_group + d * x_at.stride[2] + h * x_at.stride[3] + v * x_at.stride[4];
          const scalar_t* w_tap =
              w_filter + t * w_at.stride[2] + r * w_at.stride[3] + s * w_at.stride[4];
          for (int64_t c = 0; c < channels; ++c)
            sum += to_acc(x_tap[c * x_at.stride[1]]) * to_acc(w_tap[c * w_at.stride[1]]);
        }
      }
    }
    if (epilogue.any) {
      acc_t<scalar_t> value[1] = {sum};
      apply_epilogue(epilogue, value, [&](acc_t<scalar_t>(&r)[1]) {
        r[0] = to_acc(static_cast<const scalar_t*>(epilogue.residual)[i]);
      });
      sum = value[0];
    }
    // What lies between the runs of a slice, of pixels or of images.
    const int64_t runs = skipped == 0 ? 0 : y_at.channels_last ? i / problem.K : at[0];
    y[i + runs * skipped] = from_acc<scalar_t>(sum);
  }
}

}  // namespace fastconv::cuda
