// What the host works out for the convolutions that keep pixels with their halo in shared memory
// (conv_halo.cu): an instance's shape, and how it lays a problem out.
#pragma once
#include <string>

#include "conv_algorithm.h"

namespace fastconv::cuda {

extern const ConvAlgorithm conv_halo;

struct HaloShape {
  Direction direction;
  DType dtype;
  int filter_h, block_n, products;
  int units, unit_w, unit_h;  // of a tile; pixels of a unit
  int data_bytes;             // of shared memory, for weights and two boxes

  constexpr bool dgrad() const { return direction == Direction::kDgrad; }
};

// Axes are H, W. src is the tensor read, dst the one written.
struct HaloPlan {
  int64_t src_channels, dst_channels;
  int64_t src[2], dst[2];
  int64_t first[2];                // of src, under the first tap of dst's pixel 0, 0
  int units_log[2];                // of a tile, the rest of its units being images
  int64_t tile[3], tiles[3];       // N, H, W: a tile's extents, and how many there are
  int64_t box[2];                  // a tile's, with the halo
  int64_t box_bytes, stage_bytes;  // that a copy brings; from the first box to the second
  bool fits;
  int64_t chunks, steps;           // of src's channels: 64 to a chunk, 16 to a step
  int64_t last_eighths, last_all;  // of the last chunk: 8 channels each; steps of a row of taps
  int64_t row_steps;               // of a row of taps, in all chunks
  int64_t tap_pitch, row_pitch, w_taps, w_chunks, w_chunk_bytes, w_bytes;
  int64_t parts;    // of dst's channels
  int cluster_log;  // blocks of a cluster, which share their weights
  int64_t blocks;   // to each part
  // Of all blocks: what they read from L2, and 2 operations for each multiply-add, tails and
  // borders included.
  double pixel_bytes, weight_bytes, flops;
  double seconds;

  int64_t tile_count() const { return tiles[0] * tiles[1] * tiles[2]; }
};

std::string halo_refusal(const HaloShape&, const ConvProblem&);
// Of a problem that is not refused: the fastest arrangement of a tile's units.
HaloPlan halo_plan(const HaloShape&, const ConvProblem&, const Device&);
// Null: no such instance.
const HaloShape* find_halo_shape(const std::string& instance);

}  // namespace fastconv::cuda
