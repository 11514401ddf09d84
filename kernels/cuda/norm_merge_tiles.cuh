// Statistics of every channel from those of tiles of pixels, which a convolution left beside y:
//
//   mean[k], m2[k] = (first + offset, m2) of tiles 0, 1, .. of channel k, merged
//
// The tiles have equally many pixels, but for the last. Means are merged as distances from the
// first value of tile 0, so that mean 1e4 and deviation 1 leave m2 all its digits in fp32.
//
// Mapping   a block per channel: threads take tiles kMergeTilesThreads apart, four loads under way
//           at a time, and merge them into their own; then lanes in pairs, then warps in order.
// Dtypes    fp32, in any of y's types.
// Bytes     12 per tile and channel, where y has 256 to 512: a few microseconds, bound by latency.
//           Not measured on a GPU.
// Determinism   who merges what in which order follows from the number of tiles. No atomics.
// Source    Chan, Golub and LeVeque 1979 (detail/norm_merge.cuh).
#pragma once
#include "detail/norm_merge.cuh"

namespace fastconv::cuda {

constexpr int kMergeTilesThreads = 128;

// partial: [K][tiles][3], of (first, offset, m2).
struct MergeTilesArguments {
  const float* partial;
  int64_t pixels;
  int tiles, tile_pixels;
  float *mean, *m2;  // [K]
};

__global__ void __launch_bounds__(kMergeTilesThreads, 8)
    norm_merge_tiles_kernel(const MergeTilesArguments a) {
  constexpr int TOGETHER = 4, WARPS = kMergeTilesThreads / 32;
  FC_SHARED(float, shared, [3 * WARPS]);
  const int k = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const float* const partial = a.partial + static_cast<int64_t>(k) * a.tiles * 3;
  const float zero = partial[0];  // of the means
  float count = 0, mean = 0, m2 = 0;
#pragma unroll 1
  for (int64_t tile = thread; tile < a.tiles; tile += TOGETHER * kMergeTilesThreads) {
    float first[TOGETHER], offset[TOGETHER], squares[TOGETHER], counts[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      const int64_t t = tile + i * kMergeTilesThreads;
      const bool exists = t < a.tiles;
      first[i] = exists ? partial[t * 3] : 0.0f;
      offset[i] = exists ? partial[t * 3 + 1] : 0.0f;
      squares[i] = exists ? partial[t * 3 + 2] : 0.0f;
      counts[i] = t + 1 < a.tiles ? static_cast<float>(a.tile_pixels)
                  : exists        ? static_cast<float>(a.pixels - t * a.tile_pixels)
                                  : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i)
      merge_moments(count, mean, m2, counts[i], (first[i] - zero) + offset[i], squares[i]);
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    const float other_count = __shfl_down_sync(0xffffffffu, count, by);
    const float other_mean = __shfl_down_sync(0xffffffffu, mean, by);
    const float other_m2 = __shfl_down_sync(0xffffffffu, m2, by);
    if (thread % 32 < by) merge_moments(count, mean, m2, other_count, other_mean, other_m2);
  }
  if (thread % 32 == 0) {
    float* const to = shared + 3 * (thread / 32);
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
