// Batch normalisation with activation, backward, reduction, with g = dz * act'(pre):
//
//   sum_g[k] = sum of g,   sum_gy[k] = sum of g * (y - mean[k])     over the images and the pixels
//
// They are the gradients of bias and, times rstd, of weight, and what norm_dgrad needs.
//
// Mapping   two stages, as norm_stats.cuh, with plain sums: those of g (y - mean) have nothing to
//           cancel. pre is computed anew from y.
// Dtypes    f32, f64, bf16, f16, in acc_t.
// Bytes     |y| + |dz| (+ |residual|) once: bound by memory. Not measured on a GPU.
// Determinism   as norm_stats.cuh; threads add in pairs. No atomics.
// Source    Ioffe and Szegedy, "Batch Normalization", 2015, section 3.
#pragma once
#include "detail/norm_merge.cuh"

namespace fastconv::cuda {

template <class scalar_t>
__global__ void __launch_bounds__(kNormThreads, 4)
    norm_sums_planes_kernel(const NormArguments<scalar_t> a) {
  using A = acc_t<scalar_t>;
  FC_SHARED(A, shared, [3 * kNormThreads]);
  const int k = static_cast<int>(blockIdx.x) / a.splits;
  const int split = static_cast<int>(blockIdx.x) - k * a.splits;
  NormChannels<A, 1> c;
  c.load(a, k);
  NormPartial<A, 1> own = {};
  walk_units(a, k, split, [&](const NormSpan& span) {
    walk_span<kNormVector<scalar_t>>(span.begin, span.end, a.vectors, threadIdx.x & (a.lanes - 1),
                                     a.lanes, [&](auto together, int64_t at) {
                                       constexpr int COUNT = decltype(together)::value;
                                       A centred[COUNT], dz[COUNT], g[COUNT];
                                       norm_gradients<COUNT>(a, c, at, centred, dz, g);
#pragma unroll
                                       for (int i = 0; i < COUNT; ++i) {
                                         own.first[0] += g[i];
                                         own.second[0] += g[i] * centred[i];
                                       }
                                     });
  });
  merge_slots<false>(own, 1, shared);
  if (threadIdx.x == 0) store_partial<false>(a, own, k, split);
}

template <class scalar_t, int VEC>
__global__ void __launch_bounds__(kNormThreads, (VEC > 4 ? 3 : 4))
    norm_sums_channels_kernel(const NormArguments<scalar_t> a) {
  using A = acc_t<scalar_t>;
  FC_SHARED(A, shared, [(2 * VEC + 1) * kNormThreads]);
  const NormPixels p = norm_pixels<VEC>(a);
  NormPartial<A, VEC> own = {};
  if (p.any) {
    NormChannels<A, VEC> c;
    c.load(a, p.k);
#pragma unroll 1
    for (int64_t pixel = p.first + p.slot; pixel < p.last; pixel += p.slots) {
      A centred[VEC], dz[VEC], g[VEC];
      norm_gradients<VEC>(a, c, pixel * a.K + p.k, centred, dz, g);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        own.first[i] += g[i];
        own.second[i] += g[i] * centred[i];
      }
    }
  }
  merge_slots<false>(own, a.lanes, shared);
  if (p.slot == 0 && p.any) store_partial<false>(a, own, p.k, p.split);
}

}  // namespace fastconv::cuda
