// Arguments of the convolutions that keep a tile's pixels and their halo in shared memory, and the
// tile's shape: what is known when compiled, and what the host chooses for a problem.
#pragma once
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

// src is read through a tile map [N, H, W, C], w through one [K, taps, C].
struct ConvHaloParams {
  TensorMap src, w;
  ConvResult result;
  int images, rows, columns;  // of the result: its pixels are their product

  int first_h, first_w;          // of src, under the first tap of the result's pixel 0, 0
  int units_w_log, units_h_log;  // of a tile, the rest of its units being images
  int tile_n, tile_h, tile_w;    // images, rows, columns of a tile
  int box_h, box_w;              // with the halo
  FastDivmod tiles_h, tiles_w;   // of an image
  int tiles;                     // of all pixels
  int parts;                // of the result's channels, BLOCK_N each: a block has one for its life
  int stages, stage_bytes;  // boxes in shared memory
  int box_bytes;            // that a copy brings

  int filter_w, taps;
  int chunks, last_steps;  // of src's channels; STEPs of the last chunk
  // The weights in shared memory: tap t's channel c is gemm_k = t * tap_pitch + c.
  int tap_pitch;
  int w_taps, w_chunks;  // copies: along the map's second axis, along gemm_k
  int w_chunk_bytes;     // that one brings
  int w_bytes;           // all of them, to which the boxes follow
};

}  // namespace fastconv::cuda
