// What the launcher tells conv_gather_direct_kernel. Plain data, passed by value.
#pragma once
#include "conv_direct_stage.cuh"

namespace fastconv::cuda {

// One spatial axis of one residue class (fprop has one class). Output i of the class is coordinate
// out_begin + i * out_step; its tap j reads input coordinate i * in_step + in_origin + j * tap_step
// and has filter index filter_begin + j * filter_step.
struct GatherAxis {
  int outputs, out_begin;
  int in_origin;
  int taps, filter_begin, filter_step;
};

constexpr int kMaxClasses = 8;  // per axis: the largest stride of dgrad

struct GatherParams {
  GatherAxis axis[3][kMaxClasses];
  int in_step[3], tap_step[3], out_step[3];

  // One group.
  int channels, filters;  // gathered, produced
  bool transposed;        // dgrad: the produced channels are axis 1 of w

  // Strides in elements.
  int64_t in_stride_n, in_stride_d;
  int64_t out_stride_n, out_stride_k, out_stride_d, out_stride_h, out_stride_w;
  int64_t w_group;
  int w_out, w_in, w_tap[3];
  int in_depth;
  bool vector_stores;
  // Of the residual, dense where out may be a slice; along the channels it is out's.
  int64_t residual_stride_n, residual_stride_d, residual_stride_h, residual_stride_w;
  bool vector_residual;

  // The grid, fastest first.
  FastDivmod by_class[3], by_k_blocks, by_tiles_q, by_tiles_p, by_planes, by_groups;
  int tile_p, tile_q, tile_q_log2;

  // A step of the sum and its staged box.
  int step_rows, step_cols;  // taps
  StageBox box;
  int slots;         // per pack, all rows
  int step_slots_h;  // from one output row to the next
  int tap_slots_h;   // from one filter row to the next
  // From one filter column to the next: tap_slots_w more, tap_phase_w phases further, and
  // phase_wrap_w more when that passes the last phase.
  int tap_slots_w, tap_phase_w, phases_w, phase_wrap_w;
};

// Of one image and group, where there is one class.
__host__ __device__ __forceinline__ int64_t gather_image_tiles(const GatherParams& params) {
  return static_cast<int64_t>(params.by_tiles_q.divisor) * params.by_tiles_p.divisor *
         params.by_planes.divisor;
}

}  // namespace fastconv::cuda
