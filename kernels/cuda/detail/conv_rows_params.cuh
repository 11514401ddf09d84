// Arguments of the convolution of few channels over windows of staged rows (conv_fprop_rows.cuh),
// as the host works them out (csrc/cuda/conv_rows.cu), and the shape of a block's work.
#pragma once
#include "block_moments.cuh"
#include "fast_divmod.cuh"
#include "gemm_tile.cuh"

namespace fastconv::cuda {

// A block of four warps, one below the other: each has FRAGMENTS times 16 pixels of a tile, as
// units of eight pixels side by side, and all of its BLOCK_N filters.
template <class scalar, GemmMath math, int fragments, int min_blocks>
struct RowsTile {
  using scalar_t = scalar;
  static constexpr GemmMath MATH = math;
  static constexpr int FRAGMENTS = fragments;
  static constexpr int NUM_THREADS = 128, MIN_BLOCKS = min_blocks;
  static constexpr int WARP_UNITS = 2 * fragments;
  static constexpr int UNITS = 4 * WARP_UNITS, BLOCK_M = 8 * UNITS, BLOCK_N = 64;
  // gemm_k goes by chunks of 16 bytes, two to a step of the tensor cores.
  static constexpr int CHUNK = 16 / static_cast<int>(sizeof(scalar));
  static constexpr int STEP_BYTES = BLOCK_N * 32;  // of the weights
  static_assert(math != GemmMath::kFma);
};

// How a tile's rows come: by 16 or 4 bytes at once, or by elements of 2 bytes where x's rows begin
// at odd ones.
enum class RowsCopy : int { kSixteen, kFour, kElements };

struct ConvRowsParams {
  const void *x, *w, *bias;
  void* y;
  StoreEpilogue<float> epilogue;
  MomentTiles<float> moments;  // per tile
  int64_t y_pitch;             // channels from one pixel of y to the next
  int64_t image_rows;          // of x: D H
  RowsCopy copy;
  bool w_vec;                 // w's base is aligned to 16 bytes
  bool vec8;                  // eight channels of y that start at a multiple of eight are aligned
  int filters, parts;         // K; blocks of BLOCK_N of them
  int row_elements;           // W C
  int in[2], out[3];          // D, H; O, P, Q
  int stride[2], padding[2];  // D, H
  int dilation[2];            // T, R
  int column_step;            // elements from one window to the next: stride C
  int first, begin;           // elements: where a tile's rows begin in x's, of column 0; from there
                              // to the first window, an even number of 16-bit ones
  int window;                 // S C
  int lead;                   // elements of a window before its first tap, 0 or 1
  int taps_h, tap_rows;       // R; T R
  int chunks, steps;          // of a window; of gemm_k in all
  // A tile: rows and columns of units, as powers of two, and what it stages.
  int units_w_log, tile_h, tile_w;
  FastDivmod tiles_h, tiles_w, planes;  // tiles to a plane; planes: O
  int tiles;                            // N O tiles_h tiles_w
  FastDivmod box_h;                     // rows staged of a plane of x
  FastDivmod row_copies;                // copies to a row
  int copies;                           // to a tile
  int row_bytes;                        // staged, a multiple of 16
  int shifted;      // bytes behind the rows their copy shifted by an element lies; 0: there is none
  int stage_bytes;  // from one tile's rows to the next one's
};

}  // namespace fastconv::cuda
