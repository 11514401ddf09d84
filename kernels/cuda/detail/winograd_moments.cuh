// Moments of y (block_moments.cuh) of the tiles of a Winograd convolution that a block has stored.
#pragma once
#include "block_moments.cuh"
#include "winograd_tile.cuh"

namespace fastconv::cuda {

// Of tiles first_tile to first_tile + TILES - 1, as far as they are below end_tile, the first being
// so, and `channels` channels from y's on; the first's moments go to *to, others `pitch` apart.
template <class Wino, bool kNhwc, int TILES, class scalar_t>
__device__ __forceinline__ void winograd_moments(const WinogradImages& images,
                                                 const WinogradTiling& tiling, const scalar_t* y,
                                                 uint32_t first_tile, uint32_t end_tile,
                                                 int channels, int threads,
                                                 CountedMoment<float>* to, int64_t pitch) {
  constexpr int kOut = Wino::kOut;
  block_moments<(kNhwc ? 8 : 1), 1, scalar_t>(
      channels, TILES * kOut * kOut, static_cast<int>(threadIdx.x), threads,
      [&](int c, int i) -> const scalar_t* {
        // Of neighbouring tiles a row after the other.
        const uint32_t tile = first_tile + i / kOut % TILES;
        if (tile >= end_tile) return nullptr;
        const WinogradTile t = winograd_tile(tiling, tile);
        const int32_t row = t.y * kOut + i / (kOut * TILES), column = t.x * kOut + i % kOut;
        if (row >= images.height || column >= images.width) return nullptr;
        return byte_offset(y, c * images.stride_c + t.n * images.stride_n +
                                  row * static_cast<int64_t>(images.stride_h) +
                                  column * static_cast<int64_t>(images.stride_w));
      },
      [&](int c) { return to + c * pitch; });
}

}  // namespace fastconv::cuda
