// Statistics of every channel from those of tiles of pixels, which a convolution left beside y:
//
//   mean[k], m2[k] = (first + offset, m2) of tiles 0, 1, .. of channel k, merged
//
// The tiles have equally many pixels, but for the last, or say how many. Means are merged as
// distances from the first value of tile 0, so that mean 1e4 and deviation 1 leave m2 all its
// digits in fp32.
//
// Mapping   a block per channel: threads take tiles kMergeTilesThreads apart, four loads under way
//           at a time, and merge them into their own; then lanes in pairs, then warps in order.
// Dtypes    fp32, in any of y's types but fp64, which has fp64.
// Bytes     12 per tile and channel (16 with counts), where y mostly has 256 to 512: a few
//           microseconds, bound by latency. Not measured on a GPU.
// Determinism   who merges what in which order follows from the number of tiles. No atomics.
// Source    Chan, Golub and LeVeque 1979 (detail/norm_merge.cuh).
#pragma once
#include "detail/moments.cuh"
#include "detail/norm_merge.cuh"

namespace fastconv::cuda {

constexpr int kMergeTilesThreads = 128;

// Moment: TileMoment, or CountedMoment<A> in tiles that differ; partial [K][tiles].
template <class Moment, class A>
struct MergeTilesArguments {
  const Moment* partial;
  int64_t pixels;
  int tiles, tile_pixels;  // the latter and `pixels` where the moments have no counts
  A *mean, *m2;            // [K]
};

__device__ __forceinline__ float moment_count(const MergeTilesArguments<TileMoment, float>& a,
                                              const TileMoment&, int64_t tile) {
  return static_cast<float>(tile + 1 < a.tiles ? a.tile_pixels : a.pixels - tile * a.tile_pixels);
}
template <class A>
__device__ __forceinline__ A moment_count(const MergeTilesArguments<CountedMoment<A>, A>&,
                                          const CountedMoment<A>& moment, int64_t) {
  return moment.count;
}

template <class Moment, class A>
__global__ void __launch_bounds__(kMergeTilesThreads, 8)
    norm_merge_tiles_kernel(const MergeTilesArguments<Moment, A> a) {
  constexpr int TOGETHER = sizeof(A) == 8 ? 2 : 4, WARPS = kMergeTilesThreads / 32;
  FC_SHARED(A, shared, [3 * WARPS]);
  const int k = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Moment* const partial = a.partial + static_cast<int64_t>(k) * a.tiles;
  const A zero = partial[0].first;  // of the means
  A count = 0, mean = 0, m2 = 0;
#pragma unroll 1
  for (int64_t tile = thread; tile < a.tiles; tile += TOGETHER * kMergeTilesThreads) {
    Moment moments[TOGETHER];
    A counts[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      const int64_t t = tile + i * kMergeTilesThreads;
      const bool exists = t < a.tiles;
      moments[i] = exists ? partial[t] : Moment{};
      counts[i] = exists ? moment_count(a, moments[i], t) : A(0);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i)
      merge_moments(count, mean, m2, counts[i], (moments[i].first - zero) + moments[i].offset,
                    moments[i].m2);
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    const A other_count = __shfl_down_sync(0xffffffffu, count, by);
    const A other_mean = __shfl_down_sync(0xffffffffu, mean, by);
    const A other_m2 = __shfl_down_sync(0xffffffffu, m2, by);
    if (thread % 32 < by) merge_moments(count, mean, m2, other_count, other_mean, other_m2);
  }
  if (thread % 32 == 0) {
    A* const to = shared + 3 * (thread / 32);
    to[0] = count, to[1] = mean, to[2] = m2;
  }
  __syncthreads();
  if (thread != 0) return;
#pragma unroll
  for (int warp = 1; warp < WARPS; ++warp)
    merge_moments(count, mean, m2, shared[3 * warp], shared[3 * warp + 1], shared[3 * warp + 2]);
  a.mean[k] = zero + mean, a.m2[k] = m2;
}

}  // namespace fastconv::cuda
