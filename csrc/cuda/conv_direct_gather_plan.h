// How the tiled direct kernels of fprop and dgrad cut a problem: residue classes, the shape of a
// tile, the steps of the sum. Plain arithmetic of the problem, done again at every call (two
// microseconds), so that there is nothing to keep.
#pragma once
#include <numeric>
#include <string>

#include "conv_direct_launch.h"
#include "conv_direct_tensors.cuh"
#include "conv_gather_direct_params.cuh"

namespace fastconv::cuda {

// Of a tile (conv_gather_direct.cuh) and its dtype.
struct GatherShape {
  int threads, block_k, block_pix, k_pitch, pack, acc_bytes;
  double multiply_share;  // multiply-adds among the time of the main loop
};

struct GatherPlan {
  std::string refusal;
  GatherParams params;
  int64_t blocks;
  int64_t shared_bytes;
  double lane_instructions;  // of the whole grid, for the cost
};

struct GatherStep {
  int rows, cols, packs;         // taps and packs of channels
  int unit[2], step[2], tap[2];  // per plane axis: input positions per slot; slots per output, tap
  int box_rows, box_cols, run, pitch, slots;
  int64_t bytes;
};

// Slots of a tile of tile_p x tile_q outputs when a step visits rows x cols taps.
inline GatherStep gather_step(const GatherParams& params, const GatherShape& shape, int tile_p,
                              int tile_q, int rows, int cols, int packs) {
  GatherStep s{};
  s.rows = rows, s.cols = cols, s.packs = packs;
  const int taps[2] = {rows, cols};
  for (int i = 0; i < 2; ++i) {
    // Positions that no tap of the step reads are not staged.
    s.unit[i] = taps[i] == 1 ? params.in_step[i + 1]
                             : std::gcd(params.in_step[i + 1], params.tap_step[i + 1]);
    s.step[i] = params.in_step[i + 1] / s.unit[i];
    s.tap[i] = taps[i] == 1 ? 0 : params.tap_step[i + 1] / s.unit[i];
  }
  const int64_t box_rows = int64_t{tile_p - 1} * s.step[0] + int64_t{rows - 1} * s.tap[0] + 1;
  const int64_t box_cols = int64_t{tile_q - 1} * s.step[1] + int64_t{cols - 1} * s.tap[1] + 1;
  const int64_t run = ceil_div(box_cols, s.step[1]);
  int64_t slots = box_rows * run * s.step[1];
  // Threads that write neighbouring packs of one position then meet different banks.
  const int64_t residue = packs >= 8 ? 1 : 8 / packs;
  slots += ((residue - slots) % 8 + 8) % 8;
  s.bytes =
      packs * (slots * 16 + int64_t{rows} * cols * shape.pack * shape.k_pitch * shape.acc_bytes);
  if (s.bytes > kHardBytes) return s;  // the rest may not fit 32 bits
  s.box_rows = static_cast<int>(box_rows), s.box_cols = static_cast<int>(box_cols);
  s.run = static_cast<int>(run), s.pitch = static_cast<int>(run * s.step[1]);
  s.slots = static_cast<int>(slots);
  return s;
}

// The most taps per step, up to rows x cols, that leave room for other blocks: groups of rows, else
// parts of a row; and as many channels. A step of one tap fits in any case.
inline GatherStep largest_gather_step(const GatherParams& params, const GatherShape& shape,
                                      int tile_p, int tile_q, int rows, int cols) {
  GatherStep s{};
  for (int parts = 1;; ++parts) {
    s = gather_step(params, shape, tile_p, tile_q, static_cast<int>(ceil_div(rows, parts)), cols,
                    1);
    if (s.bytes <= kSoftBytes || s.rows == 1) break;
  }
  for (int parts = 2; s.bytes > kSoftBytes && s.cols > 1; parts += std::max(1, parts / 2))
    s = gather_step(params, shape, tile_p, tile_q, s.rows, static_cast<int>(ceil_div(cols, parts)),
                    1);
  while (s.packs < 8 && s.packs * shape.pack < params.channels) {
    const GatherStep wider =
        gather_step(params, shape, tile_p, tile_q, s.rows, s.cols, 2 * s.packs);
    if (wider.bytes > kStepBytes) break;
    s = wider;
  }
  return s;
}

// Thread instructions per plane and channel, of `tiles` tiles.
inline double gather_work(const GatherShape& shape, const GatherStep& s, double tiles,
                          const int (&taps)[3]) {
  const double steps = double(ceil_div(taps[1], s.rows)) * double(ceil_div(taps[2], s.cols));
  const double multiply = double(taps[1]) * taps[2] * shape.block_k *
                          (shape.block_pix / shape.multiply_share + kStageWeight);
  // A row of the box costs up to a sector more than it holds; a step two barriers and set-up.
  const double stage = kStageInput * s.box_rows * (s.box_cols + 8.0) +
                       100.0 * shape.threads / (s.packs * shape.pack);
  return tiles * (multiply + steps * stage);
}

inline void plan_gather_axes(const ConvProblem& p, Direction direction, GatherPlan& plan,
                             int (&classes)[3]) {
  GatherParams& params = plan.params;
  for (int i = 0; i < 3; ++i) {
    const int in = static_cast<int>(p.in[i]), out = static_cast<int>(p.out[i]);
    const int filter = static_cast<int>(p.filter[i]), pad = static_cast<int>(p.padding[i]);
    const int stride = static_cast<int>(p.stride[i]), dilation = static_cast<int>(p.dilation[i]);
    if (direction == Direction::kFprop) {
      classes[i] = 1;
      params.in_step[i] = stride, params.tap_step[i] = dilation, params.out_step[i] = 1;
      params.axis[i][0] = {out, 0, -pad, filter, 0, 1};
      continue;
    }
    const int gcd = std::gcd(stride, dilation), every = stride / gcd;
    classes[i] = std::min(stride, in);
    params.in_step[i] = 1, params.tap_step[i] = dilation / gcd, params.out_step[i] = stride;
    for (int at = 0; at < classes[i]; ++at) {
      // Tap r reaches the class when r * dilation = at + pad (mod stride).
      int first = 0;
      while (first < every && (at + pad - int64_t{first} * dilation) % stride != 0) ++first;
      const int taps = first < every && first < filter ? (filter - 1 - first) / every + 1 : 0;
      const int last = first + (taps - 1) * every;
      GatherAxis& axis = params.axis[i][at];
      axis = {static_cast<int>(ceil_div(in - at, stride)), at, 0, taps, 0, 0};
      // Last tap first, so that dy is read upwards.
      if (taps > 0)
        axis.in_origin = (at + pad - last * dilation) / stride, axis.filter_begin = last,
        axis.filter_step = -every;
    }
  }
}

inline GatherPlan plan_gather(const ConvProblem& p, Direction direction, bool channels_last,
                              const GatherShape& shape) {
  GatherPlan plan{};
  GatherParams& params = plan.params;
  plan.refusal = direct_refusal(p, direction);
  if (!plan.refusal.empty()) return plan;

  const bool fprop = direction == Direction::kFprop;
  const DenseTensor in = fprop ? dense_x(p, channels_last) : dense_y(p, channels_last);
  const DenseTensor out = fprop ? dense_y(p, channels_last) : dense_x(p, channels_last);
  const DenseTensor w = dense_w(p, channels_last);
  params.transposed = !fprop;
  params.channels = static_cast<int>(fprop ? p.channels_per_group() : p.filters_per_group());
  params.filters = static_cast<int>(fprop ? p.filters_per_group() : p.channels_per_group());
  params.in_stride_n = in.stride[0], params.in_stride_d = in.stride[2];
  params.in_depth = static_cast<int>(in.extent[2]);
  params.box.extent_h = static_cast<int>(in.extent[3]);
  params.box.extent_w = static_cast<int>(in.extent[4]);
  params.box.stride_c = in.stride[1];
  params.box.stride_h = in.stride[3], params.box.stride_w = in.stride[4];
  params.out_stride_n = out.stride[0], params.out_stride_k = out.stride[1];
  params.out_stride_d = out.stride[2], params.out_stride_h = out.stride[3];
  params.out_stride_w = out.stride[4];
  params.w_group = p.filters_per_group() * w.stride[0];
  params.w_out = static_cast<int>(w.stride[fprop ? 0 : 1]);
  params.w_in = static_cast<int>(w.stride[fprop ? 1 : 0]);
  for (int i = 0; i < 3; ++i) params.w_tap[i] = static_cast<int>(w.stride[2 + i]);

  int classes[3], taps[3] = {0, 0, 0}, outputs[3] = {0, 0, 0};
  plan_gather_axes(p, direction, plan, classes);
  for (int i = 0; i < 3; ++i)
    for (int at = 0; at < classes[i]; ++at) {
      taps[i] = std::max({taps[i], params.axis[i][at].taps, 1});
      outputs[i] = std::max(outputs[i], params.axis[i][at].outputs);
    }

  GatherStep best{};
  double least = 0;
  int64_t tiles_p = 0, tiles_q = 0;
  for (int log2 = 0; (1 << log2) <= shape.block_pix; ++log2) {
    const int tile_q = 1 << log2, tile_p = shape.block_pix >> log2;
    const int64_t across = ceil_div(outputs[2], tile_q), down = ceil_div(outputs[1], tile_p);
    // Taps far apart are better staged one by one than with all that lies between them.
    const int most[3][2] = {{taps[1], taps[2]}, {1, taps[2]}, {1, 1}};
    for (const auto& [rows, cols] : most) {
      const GatherStep s = largest_gather_step(params, shape, tile_p, tile_q, rows, cols);
      if (s.bytes > kHardBytes) continue;
      const double work = gather_work(shape, s, double(across) * double(down), taps);
      if (least != 0 && work >= least) continue;
      least = work, best = s, tiles_p = down, tiles_q = across;
      params.tile_p = tile_p, params.tile_q = tile_q, params.tile_q_log2 = log2;
    }
  }

  params.step_rows = best.rows, params.step_cols = best.cols;
  StageBox& box = params.box;
  box.rows = best.box_rows, box.cols = best.box_cols;
  box.unit_h = best.unit[0], box.unit_w = best.unit[1];
  box.run = best.run, box.pitch = best.pitch;
  box.slot_stride = shape.pack, box.pack_stride = best.slots * shape.pack;
  while ((1 << box.packs_log2) < best.packs) ++box.packs_log2;
  box.by_cols = FastDivmod(best.box_cols), box.by_phases = FastDivmod(best.step[1]);
  params.slots = best.slots;
  params.step_slots_h = best.step[0] * best.pitch;
  params.tap_slots_h = best.tap[0] * best.pitch;
  params.phases_w = best.step[1];
  params.tap_phase_w = best.tap[1] % best.step[1];
  params.tap_slots_w = best.tap[1] / best.step[1] + params.tap_phase_w * best.run;
  params.phase_wrap_w = 1 - best.step[1] * best.run;

  const int64_t k_blocks = ceil_div(params.filters, shape.block_k);
  const double per_class = double(p.N) * double(p.groups) * outputs[0] * double(tiles_p) *
                           double(tiles_q) * double(k_blocks);
  const double blocks = per_class * classes[0] * classes[1] * classes[2];
  if (blocks > 2147483647.0) {
    plan.refusal = "needs " + std::to_string(blocks) + " thread blocks, a grid has 2147483647";
    return plan;
  }
  plan.blocks = static_cast<int64_t>(blocks);
  plan.shared_bytes = best.bytes;
  // Every tap is in one class: the classes together visit the filter once.
  plan.lane_instructions = per_class / double(tiles_p * tiles_q) * params.channels * least *
                           (double(p.filter_size()) / (double(taps[1]) * taps[2]));
  for (int i = 0; i < 3; ++i) params.by_class[i] = FastDivmod(classes[i]);
  params.by_k_blocks = FastDivmod(static_cast<uint32_t>(k_blocks));
  params.by_tiles_q = FastDivmod(static_cast<uint32_t>(tiles_q));
  params.by_tiles_p = FastDivmod(static_cast<uint32_t>(tiles_p));
  params.by_planes = FastDivmod(outputs[0]);
  params.by_groups = FastDivmod(static_cast<uint32_t>(p.groups));
  return plan;
}

}  // namespace fastconv::cuda
