// The direct convolution's plan: every number and table that its kernels need, made once per call
// by plain code (conv_direct_plan.cpp) and read by the code compiled per instruction set.
//
// fprop and dgrad are one gather, out[n,ko,i] = sum_{tap,ci} in[n,ci, i*step + off(tap)] * w. dgrad
// with stride runs it once per residue class of the input coordinate: inside a class the gradient
// is a dense gather with step 1 over the taps that reach the class, so no zeros are inserted.
// Every tap belongs to exactly one class.
//
// A tile of outputs is computed from a staged copy of its input: converted to acc_t, zero-padded,
// with each axis split by the phase of its step, so that neighbouring outputs read neighbouring
// elements and every address is stage[row_offset(output) + col_offset(tap, ci)].
#pragma once
#include "epilogue.h"

namespace fastconv::cpu {

struct DirectTensor {
  const void* data;
  int64_t stride[5];  // n, c, d, h, w
};

// How a register tile is filled.
enum class DirectKernel : int {
  kPanel,  // vectors over output channels, inputs broadcast
  kRows,   // vectors over the innermost spatial axis, weights broadcast
  kLanes,  // depthwise, vectors over channels
};

// One spatial axis of one class. Output i of the class is coordinate out_begin + i*out_step and
// reads input coordinates i*step + tap_offset[t].
struct DirectAxis {
  int64_t out, out_begin, out_step;
  int64_t in, step;
  int64_t taps;
  int64_t tile, tiles;  // outputs per tile (the last may be shorter), number of tiles
  // The staged slots: `runs` runs of `run` slots; slot u*run + i holds input coordinate
  // tile_start*step + run_offset[u] + i*step.
  int64_t runs, run;
  int64_t* tap_filter;  // [taps] filter index of each tap
  int64_t* tap_offset;  // [taps]
  int64_t* tap_slot;    // [taps] slot that output 0 of a tile reads
  int64_t* run_offset;  // [runs]
};

struct DirectPlan {
  Direction direction;
  DType dtype;
  DirectKernel kernel;
  bool pixel_stage;  // staged channels innermost (else planes of rows)

  int64_t N, groups, Ci, Ko;  // channels per group: gathered, produced (wgrad: C/g, K/g)
  int64_t taps, filter_taps;  // of the class, of the filter
  DirectAxis axis[3];

  int64_t stage_c, stage_axis[3], stage_elements;
  int64_t ci_block, ci_blocks;
  int64_t panel, panels;  // output channels per register tile; such panels per group
  int64_t panels_per_task, panel_splits;
  int64_t lane_block, lane_blocks;  // kLanes: channels per task
  int64_t tile_positions;
  int64_t units, chunks;  // wgrad: (n, tile) pairs, and the fixed parts their sum is split into
  int64_t tasks, pack_tasks, finish_tasks;

  // Offsets into the workspace, in bytes.
  int64_t tables_bytes, weights_bytes, partial_bytes, slot_bytes;
  // Inside a thread's slot.
  int64_t slot_acc, slot_dy, slot_row, slot_out, slot_copy;

  DirectTensor in, out;  // x and y; dgrad: dy and dx; wgrad: x and dy
  // Weights by role: group, produced channel, gathered channel, t, r, s.
  const void* w;
  int64_t w_group, w_ko, w_ci, w_tap[3];
  const void* bias;
  CpuEpilogue epilogue;
  Moments moments;  // kPanel, kLanes; a block is one tile of one image

  int32_t* col;         // [ci_block][taps] stage offset; a shorter block is a prefix
  const void* weights;  // packed, acc_t; or the caller's, where they already have that form
  void* partial;        // wgrad sums, [chunks][...], acc_t
};

// Per instruction set; ranges of tasks run on one thread each, with that thread's slot.
struct DirectGatherTable {
  int vec_bytes;
  void (*pack)(const DirectPlan&, int64_t begin, int64_t end);
  void (*run)(const DirectPlan&, int64_t begin, int64_t end, void* slot);
};
struct DirectWgradTable {
  void (*run)(const DirectPlan&, int64_t begin, int64_t end, void* slot);
  void (*finish)(const DirectPlan&, int64_t begin, int64_t end);
};

// Register tiles, the same for every instruction set: 12 accumulators leave room for operands in
// 16 registers and cover the latency of two multiply-adds per cycle.
constexpr int kPanelRows = 6;
constexpr int kPanelVectors = 2;
constexpr int kMaxRowOutputs = 6;  // kRows: output channels per register tile

}  // namespace fastconv::cpu
