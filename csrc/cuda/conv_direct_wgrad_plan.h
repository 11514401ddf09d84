// How the tiled direct weight gradient cuts a problem: columns and filters per block, the tile of
// a unit, chunks of the sum. Of the problem alone, so that the sums are the same on every device.
#pragma once
#include <numeric>
#include <string>

#include "conv_direct_launch.h"
#include "conv_direct_tensors.cuh"
#include "conv_wgrad_direct.cuh"

namespace fastconv::cuda {

// Of a tile (conv_wgrad_direct.cuh) and its dtype.
struct WgradShape {
  int block_k, k_pitch, columns, slices, threads;
  int thread_tile;  // filters x columns of a thread
  int pack, acc_bytes;
};

struct WgradPlan {
  std::string refusal;
  WgradParams params;
  int64_t blocks, chunks;
  int64_t shared_bytes;
  int64_t workspace;         // partial sums of the chunks; 0 for a lone chunk
  double lane_instructions;  // of the whole grid, for the cost
};

// Blocks that fill a large GPU twice over; pixels that one chunk adds up at most, for accuracy;
// partial sums at most.
constexpr int64_t kWgradBlocks = 1056, kChunkPixels = 1 << 14, kPartialBytes = 64 << 20;

// What a block stages for a unit of tile_p x tile_q pixels, `packs` packs of channels and
// rows x cols taps.
struct WgradUnit {
  int tile_p, tile_q, packs, rows, cols;
  int unit[2], step[2], tap[2];  // as in GatherStep
  int box_rows, box_cols, run, pitch, slots;
  int64_t bytes;
};

inline int64_t padded_to_residue(int64_t n, int64_t residue) {
  return n + ((residue - n) % 8 + 8) % 8;
}

inline WgradUnit wgrad_unit(const ConvProblem& p, const WgradShape& shape, int tile_p, int tile_q,
                            int packs, int rows, int cols) {
  WgradUnit u{tile_p, tile_q, packs, rows, cols};
  const int taps[2] = {rows, cols};
  for (int i = 0; i < 2; ++i) {
    const int stride = static_cast<int>(p.stride[1 + i]);
    const int dilation = static_cast<int>(p.dilation[1 + i]);
    u.unit[i] = taps[i] == 1 ? stride : std::gcd(stride, dilation);
    u.step[i] = stride / u.unit[i];
    u.tap[i] = taps[i] == 1 ? 0 : dilation / u.unit[i];
  }
  const int64_t box_rows = int64_t{tile_p - 1} * u.step[0] + int64_t{rows - 1} * u.tap[0] + 1;
  const int64_t box_cols = int64_t{tile_q - 1} * u.step[1] + int64_t{cols - 1} * u.tap[1] + 1;
  const int64_t run = ceil_div(box_cols, u.step[1]);
  // Neighbouring lanes are neighbouring taps, then packs: with these residues of 8 they read 8
  // different groups of banks (at stride 1).
  const int64_t pitch = padded_to_residue(run * u.step[1], cols);
  const int64_t slots = padded_to_residue(box_rows * pitch, int64_t{rows} * cols);
  const int64_t exchange =
      int64_t{shape.slices - 1} * shape.columns * shape.pack * shape.block_k * shape.acc_bytes;
  u.bytes = std::max(
      exchange, packs * slots * 16 + int64_t{tile_p} * tile_q * shape.k_pitch * shape.acc_bytes);
  if (u.bytes > kHardBytes) return u;  // the rest may not fit 32 bits
  u.box_rows = static_cast<int>(box_rows), u.box_cols = static_cast<int>(box_cols);
  u.run = static_cast<int>(run), u.pitch = static_cast<int>(pitch);
  u.slots = static_cast<int>(slots);
  return u;
}

inline int64_t wgrad_tap_blocks(const ConvProblem& p, const WgradUnit& u) {
  return ceil_div(p.filter[1], u.rows) * ceil_div(p.filter[2], u.cols);
}

inline int64_t wgrad_c_blocks(const ConvProblem& p, const WgradShape& shape, const WgradUnit& u) {
  return ceil_div(ceil_div(p.channels_per_group(), shape.pack), u.packs);
}

// Thread instructions per plane of dy, of all blocks of a group.
inline double wgrad_work(const ConvProblem& p, const WgradShape& shape, const WgradUnit& u) {
  const double tiles = double(ceil_div(p.out[1], u.tile_p)) * double(ceil_div(p.out[2], u.tile_q));
  // A row of a box costs up to a sector more than it holds; a unit two barriers and set-up.
  const double staged = double(u.box_rows) * (u.box_cols + 8.0) * u.packs * shape.pack +
                        double(u.tile_p) * (u.tile_q + 8.0) * shape.block_k;
  // Of a thread and pixel: multiply-adds, and three times their loads, which may bound it.
  const double multiply = (shape.thread_tile * shape.pack + 12.0) * 1.2;
  const double work = tiles * (kStageInput * staged + 64.0 * shape.threads) +
                      multiply * shape.threads / shape.slices * double(p.out[1]) * double(p.out[2]);
  // Blocks above the soft limit leave an SM half empty.
  return double(ceil_div(p.filters_per_group(), shape.block_k)) *
         double(wgrad_c_blocks(p, shape, u)) * double(wgrad_tap_blocks(p, u)) * work *
         (u.bytes > kSoftBytes ? 1.5 : 1.0);
}

inline int balanced(int64_t total, int64_t most) {
  return static_cast<int>(ceil_div(total, ceil_div(total, most)));
}

inline WgradPlan plan_wgrad(const ConvProblem& p, bool channels_last, const WgradShape& shape) {
  WgradPlan plan{};
  WgradParams& params = plan.params;
  plan.refusal = direct_refusal(p, Direction::kWgrad);
  if (!plan.refusal.empty()) return plan;

  const int64_t all_packs = ceil_div(p.channels_per_group(), shape.pack);
  WgradUnit best{};
  double least = 0;
  // Taps of a block: whole filters, else rows of them, else parts of a row; or one row, or one tap,
  // where staging all that lies between taps far apart is the greater cost.
  const int cols = balanced(p.filter[2], shape.columns);
  const int rows =
      cols < p.filter[2] ? 1 : balanced(p.filter[1], std::max(1, shape.columns / cols));
  const int taps[3][2] = {{rows, cols}, {1, cols}, {1, 1}};
  for (int i = 0; i < 3; ++i) {
    const auto [tap_rows, tap_cols] = taps[i];
    if (i > 0 && tap_rows == taps[i - 1][0] && tap_cols == taps[i - 1][1]) continue;
    int last_packs = 0;
    for (int64_t most = shape.columns / (tap_rows * tap_cols); most >= 1; most /= 2) {
      const int packs = balanced(all_packs, most);
      if (packs == last_packs) continue;
      last_packs = packs;
      for (int pixels = 128; pixels >= 16; pixels /= 2) {
        int last_q = 0;
        for (int wide = pixels; wide >= 4; wide /= 2) {
          // Slices share its columns evenly.
          const int tile_q =
              static_cast<int>(ceil_div(balanced(p.out[2], wide), shape.slices) * shape.slices);
          if (tile_q == last_q) continue;
          last_q = tile_q;
          const int tile_p = balanced(p.out[1], std::max(1, pixels / tile_q));
          const WgradUnit u = wgrad_unit(p, shape, tile_p, tile_q, packs, tap_rows, tap_cols);
          if (u.bytes > kHardBytes) continue;
          const double work = wgrad_work(p, shape, u);
          if (least != 0 && work >= least) continue;
          least = work, best = u;
        }
      }
    }
  }
  const int64_t tiles_p = ceil_div(p.out[1], best.tile_p);
  const int64_t tiles_q = ceil_div(p.out[2], best.tile_q);

  const DenseTensor x = dense_x(p, channels_last), y = dense_y(p, channels_last);
  const DenseTensor w = dense_w(p, channels_last);
  params.x_stride_n = x.stride[0], params.x_stride_d = x.stride[2];
  params.dy_stride_n = y.stride[0], params.dy_stride_o = y.stride[2];
  std::copy(w.stride, w.stride + 5, params.dw_stride);
  params.weights = w.elements();
  params.channels = static_cast<int>(p.channels_per_group());
  params.filters = static_cast<int>(p.filters_per_group());
  params.in_depth = static_cast<int>(p.in[0]);
  for (int i = 0; i < 3; ++i) {
    params.out[i] = static_cast<int>(p.out[i]), params.taps[i] = static_cast<int>(p.filter[i]);
    params.stride[i] = static_cast<int>(p.stride[i]);
    params.padding[i] = static_cast<int>(p.padding[i]);
    params.dilation[i] = static_cast<int>(p.dilation[i]);
  }
  params.tile_p = best.tile_p, params.tile_q = best.tile_q;
  params.block_packs = best.packs, params.block_rows = best.rows, params.block_cols = best.cols;
  params.slice_q = params.tile_q / shape.slices;
  params.slots = best.slots;
  params.step_slots_h = best.step[0] * best.pitch;
  params.tap_slots_h = best.tap[0] * best.pitch;
  params.tap_step_w = best.tap[1];

  StageBox& xb = params.x_box;
  xb.rows = best.box_rows, xb.cols = best.box_cols;
  xb.unit_h = best.unit[0], xb.unit_w = best.unit[1];
  xb.extent_h = static_cast<int>(p.in[1]), xb.extent_w = static_cast<int>(p.in[2]);
  xb.stride_c = x.stride[1], xb.stride_h = x.stride[3], xb.stride_w = x.stride[4];
  xb.run = best.run, xb.pitch = best.pitch;
  xb.slot_stride = shape.pack, xb.pack_stride = best.slots * shape.pack;
  while ((1 << xb.packs_log2) < params.block_packs) ++xb.packs_log2;
  xb.by_cols = FastDivmod(best.box_cols), xb.by_phases = FastDivmod(best.step[1]);
  StageBox& yb = params.dy_box;
  yb.rows = params.tile_p, yb.cols = params.tile_q, yb.unit_h = yb.unit_w = 1;
  yb.extent_h = static_cast<int>(p.out[1]), yb.extent_w = static_cast<int>(p.out[2]);
  yb.stride_c = y.stride[1], yb.stride_h = y.stride[3], yb.stride_w = y.stride[4];
  yb.run = yb.pitch = params.tile_q;
  yb.slot_stride = shape.k_pitch, yb.pack_stride = shape.pack;
  while ((1 << yb.packs_log2) < shape.block_k / shape.pack) ++yb.packs_log2;
  yb.by_cols = FastDivmod(params.tile_q), yb.by_phases = FastDivmod(1);

  const int64_t k_blocks = ceil_div(p.filters_per_group(), shape.block_k);
  const int64_t c_blocks = wgrad_c_blocks(p, shape, best);
  const int64_t tap_blocks = wgrad_tap_blocks(p, best);
  const double units = double(p.N) * double(p.out[0]) * double(tiles_p) * double(tiles_q);
  const double one_chunk = double(k_blocks) * double(c_blocks) * double(tap_blocks) *
                           double(p.filter[0]) * double(p.groups);
  if (units > 2147483647.0 || one_chunk > 2147483647.0) {
    plan.refusal = "needs " + std::to_string(one_chunk) + " thread blocks for each of " +
                   std::to_string(units) + " tiles, at most 2147483647 of either";
    return plan;
  }
  const int64_t tile_pixels = int64_t{params.tile_p} * params.tile_q;
  const int64_t most = kPartialBytes / (params.weights * shape.acc_bytes);
  const int64_t wanted =
      std::max(ceil_div(kWgradBlocks, int64_t(one_chunk)),
               ceil_div(int64_t(units), std::max<int64_t>(1, kChunkPixels / tile_pixels)));
  plan.chunks = std::max<int64_t>(
      1, std::min({int64_t(units), wanted, most, 2147483647 / int64_t(one_chunk)}));
  params.units = static_cast<int>(units);
  params.chunk_units = static_cast<int>(ceil_div(params.units, plan.chunks));
  plan.chunks = ceil_div(params.units, params.chunk_units);
  plan.blocks = plan.chunks * int64_t(one_chunk);
  plan.shared_bytes = best.bytes;
  plan.workspace = plan.chunks > 1 ? plan.chunks * params.weights * shape.acc_bytes : 0;
  plan.lane_instructions =
      least * double(p.N) * double(p.out[0]) * double(p.filter[0]) * double(p.groups);

  params.by_k_blocks = FastDivmod(static_cast<uint32_t>(k_blocks));
  params.by_c_blocks = FastDivmod(static_cast<uint32_t>(c_blocks));
  params.by_col_blocks = FastDivmod(static_cast<uint32_t>(ceil_div(p.filter[2], best.cols)));
  params.by_row_blocks = FastDivmod(static_cast<uint32_t>(ceil_div(p.filter[1], best.rows)));
  params.by_slices_t = FastDivmod(static_cast<uint32_t>(p.filter[0]));
  params.by_groups = FastDivmod(static_cast<uint32_t>(p.groups));
  params.by_tiles_q = FastDivmod(static_cast<uint32_t>(tiles_q));
  params.by_tiles_p = FastDivmod(static_cast<uint32_t>(tiles_p));
  params.by_planes = FastDivmod(static_cast<uint32_t>(p.out[0]));
  return plan;
}

}  // namespace fastconv::cuda
