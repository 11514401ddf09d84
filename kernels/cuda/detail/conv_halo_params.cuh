// Arguments of the convolutions that keep a tile's pixels and their halo in shared memory, and the
// tile's shape: what is known when compiled, and what the host chooses for a problem.
#pragma once
#include "block_moments.cuh"
#include "cluster.cuh"
#include "conv_result.cuh"
#include "fast_divmod.cuh"
#include "tma.cuh"

namespace fastconv::cuda {

// A tile is four units, one to a warp of a warpgroup; a unit is 8 pixels of a row by 2 PRODUCTS
// rows. FILTER_H: rows of the filter.
template <class scalar, int filter_h, int block_n, int products>
struct HaloTile {
  using scalar_t = scalar;
  static constexpr int FILTER_H = filter_h, BLOCK_N = block_n, PRODUCTS = products;
  static constexpr int UNITS = 4, UNIT_W = 8, UNIT_H = 2 * PRODUCTS;
  static constexpr int PIXELS = UNITS * UNIT_W * UNIT_H;
  static constexpr int CHUNK = 64;     // channels, 128 bytes: a row of the swizzle
  static constexpr int STEP = 16;      // of them, to a wgmma
  static constexpr int CONSUMERS = 2;  // warpgroups
  static constexpr int NUM_THREADS = 128 * (1 + CONSUMERS);
  static constexpr int ALIGNMENT = 1024, BARRIER_BYTES = 64;
  // What is left for weights and boxes.
  static constexpr int DATA_BYTES = 227 * 1024 - ALIGNMENT - BARRIER_BYTES;
  static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
  static_assert(sizeof(scalar) == 2, "CHUNK and STEP are of 16-bit types");
};

// number * halo_reciprocal(d) >> HALO_RECIPROCAL_LOG is number / d, for d up to 8 and numbers below
// 128.
constexpr int HALO_RECIPROCAL_LOG = 10;
constexpr __host__ __device__ int halo_reciprocal(int d) {
  return ((1 << HALO_RECIPROCAL_LOG) + d - 1) / d;
}

// src is read through a tile map [N, H, W, C], w through one [K, taps, C]; where taps, or rows of
// them, follow one another without a gap, through [K, 1, taps C] or [K, R, S C].
struct ConvHaloParams {
  TensorMap src, w;
  ConvResult result;
  MomentTiles<float> moments;  // of fprop: a tile of pixels each
  int images, rows, columns;   // of the result: its pixels are their product

  int first_h, first_w;          // of src, under the first tap of the result's pixel 0, 0
  int units_w_log, units_h_log;  // of a tile, the rest of its units being images
  int tile_n, tile_h, tile_w;    // images, rows, columns of a tile
  int box_h, box_w;              // with the halo
  FastDivmod tiles_h, tiles_w;   // of an image
  int tiles;                     // of all pixels
  int parts;                // of the result's channels, BLOCK_N each: a block has one for its life
  int cluster_log;          // blocks of a cluster: they have the same part
  int stages, stage_bytes;  // boxes in shared memory
  int box_bytes;            // that a copy brings

  int filter_w, taps;
  int chunks;  // of src's channels
  // Of the last chunk: 16 bytes of channels of a tap, and its reciprocal; STEPs of a row of taps.
  int last_eighths, last_reciprocal, last_all;
  // The weights in shared memory: tap r, s, channel c is gemm_k = r * row_pitch + s * tap_pitch +
  // c.
  int tap_pitch, row_pitch;
  int w_taps, w_chunks;  // copies: along the map's second axis, along gemm_k
  int w_chunk_bytes;     // that one brings
  int w_bytes;           // all of them, to which the boxes follow
};

}  // namespace fastconv::cuda
