// Arguments of the convolutions whose operands TMA brings: what the host works out once, so that
// the device neither divides nor looks at the problem.
#pragma once
#include "epilogue.cuh"
#include "fast_divmod.cuh"
#include "tma.cuh"

namespace fastconv::cuda {

// Axes are D, H, W as in ConvProblem. src is read through an im2col map, w through a tile map
// [.., taps, channels].
struct ConvTmaParams {
  TensorMap src, w;
  void* dst;
  const void* bias;
  StoreEpilogue<float> epilogue;
  int64_t dst_pitch;
  int pixels, channels;  // of dst: gemm_m, gemm_n
  bool vec8, residual_vec8;
  bool volume;  // src's map has the axis D

  // Pixel o, p, q of dst starts at o * stride + first in src, less the taps' offsets.
  int stride[3], first[3];
  int filter[3], dilation[3];
  bool flipped;                  // taps of w are read backwards
  FastDivmod image, plane, row;  // O P Q, P Q, Q

  // Tiles go down bands of `band` columns of tiles, so that blocks that run together share rows of
  // src and columns of w in L2.
  int tiles, last_band;  // the last band may be narrower
  FastDivmod band_tiles, band, last_band_width;
  int chunks;   // of gemm_k, to a tap
  int k_tiles;  // taps * chunks
};

// The first pixel and channel of a tile.
struct ConvTmaPlace {
  int m, n;
};
template <class Tile>
__device__ __forceinline__ ConvTmaPlace conv_tma_place(const ConvTmaParams& p, int tile) {
  uint32_t rest, column;
  const uint32_t band = p.band_tiles.divmod(tile, rest);
  const FastDivmod& width = static_cast<int>(band) == p.last_band ? p.last_band_width : p.band;
  const uint32_t row = width.divmod(rest, column);
  return {static_cast<int>(row) * Tile::BLOCK_M,
          static_cast<int>(band * p.band.divisor + column) * Tile::BLOCK_N};
}

}  // namespace fastconv::cuda
