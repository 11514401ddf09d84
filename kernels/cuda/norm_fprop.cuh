// Batch normalisation with activation, forward, and the epilogue of a convolution on its own:
//
//   z = act((y - mean[k]) * rstd[k] * weight[k] + bias[k] (+ residual)) (+ residual)
//
// Mapping   one thread per 16 bytes, in either layout (detail/norm_arguments.cuh). z may be y, or a
//           channel slice of a larger tensor.
// Dtypes    f32, f64, bf16, f16, in acc_t; rounded once.
// Bytes     |y| + |z| (+ |residual|), each once: bound by memory. Not measured on a GPU.
// Determinism   elementwise.
// Source    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1. mean is taken off first,
//           not folded into the bias: what the two have in common would cancel after rounding.
#pragma once
#include "detail/norm_arguments.cuh"

namespace fastconv::cuda {

template <int COUNT, int CHANNELS, class scalar_t>
__device__ __forceinline__ void norm_fprop_values(const NormArguments<scalar_t>& a,
                                                  const NormChannels<acc_t<scalar_t>, CHANNELS>& c,
                                                  int64_t at, int64_t z_at) {
  acc_t<scalar_t> v[COUNT];
  load_values<COUNT>(a.y + at, v);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int k = CHANNELS == 1 ? 0 : i;
    v[i] = (v[i] - c.mean[k]) * c.scale[k] + c.bias[k];
  }
  if (a.epilogue.any)
    apply_epilogue(a.epilogue, v, [&](acc_t<scalar_t>(&r)[COUNT]) {
      load_values<COUNT>(static_cast<const scalar_t*>(a.epilogue.residual) + at, r);
    });
  store_values<COUNT>(a.z + z_at, v);
}

template <class scalar_t>
__global__ void __launch_bounds__(kNormThreads, (sizeof(scalar_t) == 8 ? 4 : 6))
    norm_fprop_planes_kernel(const NormArguments<scalar_t> a) {
  NormSpan span;
  if (!norm_unit(a, span)) return;
  NormChannels<acc_t<scalar_t>, 1> c;
  c.load(a, span.k);
  const int64_t shift = span.n * a.skipped;
  walk_span<kNormVector<scalar_t>>(span.begin, span.end, a.vectors, threadIdx.x & (a.lanes - 1),
                                   a.lanes, [&](auto together, int64_t at) {
                                     norm_fprop_values<decltype(together)::value>(a, c, at,
                                                                                  at + shift);
                                   });
}

template <class scalar_t, int VEC>
__global__ void __launch_bounds__(kNormThreads, 4)
    norm_fprop_channels_kernel(const NormArguments<scalar_t> a) {
  const NormPixels p = norm_pixels<VEC>(a);
  if (!p.any) return;
  NormChannels<acc_t<scalar_t>, VEC> c;
  c.load(a, p.k);
#pragma unroll 1
  for (int64_t pixel = p.first + p.slot; pixel < p.last; pixel += p.slots) {
    const int64_t at = pixel * a.K + p.k;
    norm_fprop_values<VEC>(a, c, at, at + pixel * a.skipped);
  }
}

}  // namespace fastconv::cuda
