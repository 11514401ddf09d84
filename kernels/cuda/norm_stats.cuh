// Statistics of every channel for batch normalisation: mean, and sum of squares about it.
//
// Mapping   two stages. A block has a channel and a range of its planes (NCHW), or some channels
//           and a range of pixels (NHWC); a thread reads 16 bytes at a time, of which it forms mean
//           and squares by distances from the first value, and merges them into its own; so do the
//           block's threads through shared memory, in pairs. norm_merge_kernel merges the blocks'.
//           A sum of squares less the square of a sum appears nowhere: mean 1e4 and deviation 1
//           come out right in fp32.
// Dtypes    f32, f64, bf16, f16, in acc_t.
// Bytes     |y| once: bound by memory. Some five instructions per value. Not measured on a GPU.
// Determinism   which values a thread has and in which order all is merged follow from the problem
//           and from whether y is aligned to 16 bytes. No atomics.
// Source    Chan, Golub and LeVeque 1979 (detail/norm_merge.cuh).
#pragma once
#include "detail/norm_merge.cuh"

namespace fastconv::cuda {

template <class scalar_t>
__global__ void __launch_bounds__(kNormThreads, (sizeof(scalar_t) == 8 ? 4 : 6))
    norm_stats_planes_kernel(const NormArguments<scalar_t> a) {
  using A = acc_t<scalar_t>;
  FC_SHARED(A, shared, [3 * kNormThreads]);
  const int k = static_cast<int>(blockIdx.x) / a.splits;
  const int split = static_cast<int>(blockIdx.x) - k * a.splits;
  NormPartial<A, 1> own = {};
  walk_units(a, k, split, [&](const NormSpan& span) {
    walk_span<kNormVector<scalar_t>>(span.begin, span.end, a.vectors, threadIdx.x & (a.lanes - 1),
                                     a.lanes, [&](auto together, int64_t at) {
                                       constexpr int COUNT = decltype(together)::value;
                                       A v[COUNT], mean, m2;
                                       load_values<COUNT>(a.y + at, v);
                                       moments_of(v, mean, m2);
                                       merge_moments(own.count, own.first[0], own.second[0],
                                                     A(COUNT), mean, m2);
                                     });
  });
  merge_slots<true>(own, 1, shared);
  if (threadIdx.x == 0) store_partial<true>(a, own, k, split);
}

// Pixels whose values are looked at together: loads in flight, for registers.
template <int VEC>
constexpr int kNormPixels = VEC > 4 ? 2 : 4;

template <class scalar_t, int VEC>
__global__ void __launch_bounds__(kNormThreads, 3)
    norm_stats_channels_kernel(const NormArguments<scalar_t> a) {
  using A = acc_t<scalar_t>;
  constexpr int PIXELS = kNormPixels<VEC>;
  FC_SHARED(A, shared, [(2 * VEC + 1) * kNormThreads]);
  const NormPixels p = norm_pixels<VEC>(a);
  NormPartial<A, VEC> own = {};
  int64_t pixel = p.any ? p.first + p.slot : p.last;
  const auto merge = [&](auto together, int64_t from) {
    constexpr int COUNT = decltype(together)::value;
    A v[COUNT][VEC];
#pragma unroll
    for (int j = 0; j < COUNT; ++j)
      load_values<VEC>(a.y + (from + static_cast<int64_t>(j) * p.slots) * a.K + p.k, v[j]);
    const A count = own.count;
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      A values[COUNT], mean, m2;
#pragma unroll
      for (int j = 0; j < COUNT; ++j) values[j] = v[j][i];
      moments_of(values, mean, m2);
      own.count = count;
      merge_moments(own.count, own.first[i], own.second[i], A(COUNT), mean, m2);
    }
  };
#pragma unroll 1
  for (; pixel + static_cast<int64_t>(PIXELS - 1) * p.slots < p.last; pixel += PIXELS * p.slots)
    merge(Together<PIXELS>(), pixel);
#pragma unroll 1
  for (; pixel < p.last; pixel += p.slots) merge(Together<1>(), pixel);
  merge_slots<true>(own, a.lanes, shared);
  if (p.slot == 0 && p.any) store_partial<true>(a, own, p.k, p.split);
}

}  // namespace fastconv::cuda
