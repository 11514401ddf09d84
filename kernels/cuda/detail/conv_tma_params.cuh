// Arguments of the convolutions whose operands TMA brings: what the host works out once, so that
// the device neither divides nor looks at the problem.
#pragma once
#include "block_moments.cuh"
#include "cluster.cuh"
#include "conv_result.cuh"
#include "fast_divmod.cuh"
#include "tma.cuh"

namespace fastconv::cuda {

// Rows and columns of a tile in which a filter is turned (conv_filter_tf32.cuh).
constexpr int kTurnTile = 32;

// Axes are D, H, W as in ConvProblem. src is read through an im2col map, w through a tile map
// [.., taps, channels].
struct ConvTmaParams {
  TensorMap src, w, dst;  // dst: of the result, if it is stored by TMA
  ConvResult result;      // pixels: gemm_m, channels: gemm_n
  bool volume;            // src's map has the axis D

  // Pixel o, p, q of the result starts at o * stride + first in src, less the taps' offsets.
  int stride[3], first[3];
  int filter[3], dilation[3];
  bool flipped;                  // taps of w are read backwards
  FastDivmod image, plane, row;  // O P Q, P Q, Q

  // Tiles go down bands of `band` columns of tiles, so that blocks that run together share rows of
  // src and columns of w in L2.
  int tiles, last_band;  // the last band may be narrower
  FastDivmod band_tiles, band, last_band_width;
  FastDivmod chunks;  // of gemm_k, to a tap
  FastDivmod filter_h, filter_w;
  int k_tiles;  // taps * chunks

  // `cluster` blocks do a tile together, of tile_m x tile_n: `split` times one or two blocks. Two
  // have neighbouring parts of it and share the rows of src or of w, of which each brings half for
  // both. `split`: into so many parts of gemm_k.
  FastDivmod cluster;
  int split;
  int tile_m, tile_n;
  bool shares_src, shares_w;

  MomentTiles<float> moments;  // of tiles of BLOCK_M pixels; fprop, and no split
};

// A block's part of the cluster's work.
struct ConvTmaPart {
  int rank;         // within the cluster
  int half, other;  // which of two it is, and the rank of the other one; half 0 if alone
  int slice;        // of gemm_k
  int k_begin, k_end;

  __device__ __forceinline__ explicit ConvTmaPart(const ConvTmaParams& p)
      : rank(p.cluster.divisor > 1 ? static_cast<int>(cluster_rank()) : 0),
        half(pairs(p) ? rank & 1 : 0),
        other(rank ^ 1),
        slice(pairs(p) ? rank >> 1 : rank),
        k_begin(slice_start(p, slice)),
        k_end(slice_start(p, slice + 1)) {}

  static __device__ __forceinline__ bool pairs(const ConvTmaParams& p) {
    return p.shares_src || p.shares_w;
  }
  // split: 1, 2, 4. Never empty: there are as many k_tiles as slices at least.
  static __device__ __forceinline__ int slice_start(const ConvTmaParams& p, int slice) {
    return (p.k_tiles * slice) >> (p.split >> 1);
  }
};

// The first pixel and channel of a block's part of a tile.
struct ConvTmaPlace {
  int m, n;
};
template <class Tile>
__device__ __forceinline__ ConvTmaPlace conv_tma_place(const ConvTmaParams& p, int tile,
                                                       int half = 0) {
  uint32_t rest, column;
  const uint32_t band = p.band_tiles.divmod(tile, rest);
  const FastDivmod& width = static_cast<int>(band) == p.last_band ? p.last_band_width : p.band;
  const uint32_t row = width.divmod(rest, column);
  return {static_cast<int>(row) * p.tile_m + (p.shares_w ? half * Tile::BLOCK_M : 0),
          static_cast<int>(band * p.band.divisor + column) * p.tile_n +
              (p.shares_src ? half * Tile::BLOCK_N : 0)};
}

}  // namespace fastconv::cuda
