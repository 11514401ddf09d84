// Winograd convolution on the GPU: the plan that the launchers and the cost model share, and the
// launchers of each mechanism. The kernels: kernels/cuda/conv_*winograd*.
#pragma once
#include <algorithm>

#include "conv_algorithm.h"
#include "detail/winograd_block.cuh"

namespace fastconv::cuda::winograd {

inline int64_t blocks_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
constexpr int64_t points_of(int tile_out) { return (tile_out + 2) * (tile_out + 2); }

// Scratch beyond this is avoided by working in pieces, as far as one piece fits. A variable, so
// that tests can have small problems worked on in pieces.
inline int64_t workspace_limit = int64_t{256} << 20;

// fprop and dgrad: out[n,k,p,q] = sum_{c,r,s} in[n,c,p+r-pad_h,q+s-pad_w] filter[k,c,r,s], where
// dgrad has in = dy, out = dx, K and C exchanged, the filter flipped and transposed. wgrad:
// filter[k,c,r,s] = sum_{n,p,q} in[n,c,p+r-pad_h,q+s-pad_w] out[n,k,p,q], in = x, out = dy.
struct Plan {
  int64_t C, K, groups;    // channels of `in` and `out` in one group
  WinogradImages in, out;  // strides in bytes
  int64_t pad_h, pad_w;
  int64_t tiles_y, tiles_x, tiles;  // of `out`; tiles of all images
  // Strides of the filter's group, k, c, r, s in elements; dgrad's begin at the last tap.
  int64_t filter_g, filter_k, filter_c, filter_r, filter_s, filter_begin;
};

inline WinogradImages images_of(int64_t channels, int64_t height, int64_t width, Layout layout,
                                int64_t scalar_bytes) {
  const bool nhwc = layout == Layout::kNHWC;
  return {channels * height * width * scalar_bytes,
          (nhwc ? 1 : height * width) * scalar_bytes,
          static_cast<int32_t>((nhwc ? width * channels : width) * scalar_bytes),
          static_cast<int32_t>((nhwc ? channels : 1) * scalar_bytes),
          static_cast<int32_t>(height),
          static_cast<int32_t>(width)};
}

inline Plan make_plan(const ConvProblem& p, Direction direction, Layout layout, int tile_out,
                      int64_t scalar_bytes) {
  Plan plan{};
  plan.groups = p.groups;
  plan.C = p.channels_per_group();
  plan.K = p.filters_per_group();
  plan.in = images_of(p.C, p.in[1], p.in[2], layout, scalar_bytes);
  plan.out = images_of(p.K, p.out[1], p.out[2], layout, scalar_bytes);
  plan.pad_h = p.padding[1];
  plan.pad_w = p.padding[2];
  const int64_t taps = 9;
  const bool nhwc = layout == Layout::kNHWC;
  plan.filter_k = plan.C * taps;
  plan.filter_g = plan.K * plan.filter_k;
  plan.filter_c = nhwc ? 1 : taps;
  plan.filter_s = nhwc ? plan.C : 1;
  plan.filter_r = 3 * plan.filter_s;
  if (direction == Direction::kDgrad) {
    std::swap(plan.C, plan.K);
    std::swap(plan.in, plan.out);
    plan.pad_h = 2 - plan.pad_h;
    plan.pad_w = 2 - plan.pad_w;
    std::swap(plan.filter_c, plan.filter_k);
    plan.filter_begin = 2 * plan.filter_r + 2 * plan.filter_s;
    plan.filter_r = -plan.filter_r;
    plan.filter_s = -plan.filter_s;
  }
  plan.tiles_y = blocks_of(plan.out.height, tile_out);
  plan.tiles_x = blocks_of(plan.out.width, tile_out);
  plan.tiles = p.N * plan.tiles_y * plan.tiles_x;
  return plan;
}

// Of fprop: y is a slice where the call says so, the residual never.
inline void set_epilogue(const ConvCall& call, Layout layout, int64_t scalar_bytes,
                         WinogradImages& out, StoreEpilogue<float>& epilogue,
                         WinogradImages& residual) {
  const ConvProblem& p = call.problem;
  residual = images_of(p.K, p.out[1], p.out[2], layout, scalar_bytes);
  out = images_of(call.y_channels(), p.out[1], p.out[2], layout, scalar_bytes);
  epilogue = store_epilogue<float>(call.epilogue);
}

inline WinogradTiling tiling_of(const Plan& plan) {
  return {static_cast<uint32_t>(plan.tiles), FastDivmod(static_cast<uint32_t>(plan.tiles_x)),
          FastDivmod(static_cast<uint32_t>(plan.tiles_y * plan.tiles_x))};
}

// --- fused fprop and dgrad: slabs, 32 filters of a group --------------------------------------

struct Slabs {
  int64_t total, per_group;
  int64_t bytes;      // of a slab's transformed filters
  int64_t at_a_time;  // as many as fill the workspace
};

inline Slabs slabs_of(const Plan& plan, int tile_out) {
  Slabs s{};
  s.per_group = blocks_of(plan.K, kWinogradBlock);
  s.total = s.per_group * plan.groups;
  s.bytes = blocks_of(plan.C, kWinogradDepth) * points_of(tile_out) * kWinogradPoint * 4;
  const int64_t most = std::min(workspace_limit / s.bytes,
                                INT32_MAX / blocks_of(plan.tiles, int64_t{kWinogradBlock}));
  s.at_a_time = std::clamp<int64_t>(most, 1, s.total);
  return s;
}

// Blocks of tiles, of each of which y's channels have moments.
inline int64_t moment_tiles(const Plan& plan) {
  return blocks_of(plan.tiles, int64_t{kWinogradBlock});
}

// --- fused wgrad: the tiles split over blocks ----------------------------------------------------

struct Splits {
  int64_t slabs, k_blocks, c_blocks;  // 32 filters times 32 channels of a group
  int64_t steps, steps_per_split, splits;
  int64_t bytes;  // of all partial sums
};

inline Splits splits_of(const Plan& plan, int tile_out) {
  Splits s{};
  s.k_blocks = blocks_of(plan.K, kWinogradBlock);
  s.c_blocks = blocks_of(plan.C, kWinogradBlock);
  s.slabs = s.k_blocks * s.c_blocks * plan.groups;
  s.steps = blocks_of(plan.tiles, kWinogradDepth);
  // Two waves of a large GPU; a sum of at most 8192 tiles, whose rounding errors stay below the
  // transforms'. Of the problem alone, so that the bits are the same on every GPU.
  const int64_t blocks = tile_out == 4 ? 264 : 528;
  const int64_t split = 9 * plan.groups * plan.K * plan.C * 4;
  int64_t wanted = std::max(blocks_of(blocks, s.slabs), blocks_of(s.steps, 1024));
  wanted = std::min({wanted, blocks_of(s.steps, 4), workspace_limit / split, INT32_MAX / s.slabs});
  s.steps_per_split = blocks_of(s.steps, std::max<int64_t>(wanted, 1));
  s.splits = blocks_of(s.steps, s.steps_per_split);
  s.bytes = s.splits * split;
  return s;
}

// --- non-fused: matrices in the workspace, of as many tiles at a time as fit ---------------------

struct Matrices {
  int64_t C, K;           // of a group, rounded up to 4
  int64_t count;          // groups times points
  int64_t tiles, chunks;  // of a chunk, a multiple of 32
  int64_t splits;         // wgrad: of a chunk's tiles, in one batched product
  // Floats: transformed filters (wgrad: dy), inputs, products, and wgrad's sums over the chunks.
  int64_t u, v, m, total;

  int64_t bytes() const { return (u + v + m + total) * 4; }
};

inline Matrices matrices_of(const Plan& plan, Direction direction, int tile_out) {
  Matrices s{};
  const bool wgrad = direction == Direction::kWgrad;
  s.C = blocks_of(plan.C, 4) * 4;
  s.K = blocks_of(plan.K, 4) * 4;
  s.count = plan.groups * points_of(tile_out);
  const int64_t filters = s.count * s.K * s.C, tile = s.count * (s.C + s.K);
  const int64_t all_tiles = blocks_of(plan.tiles, 32) * 32;
  if (wgrad) {
    // Enough blocks of 128 x 64 for a large GPU, of at least 256 tiles each. Of the problem alone,
    // as everything here, so that the bits are the same on every GPU.
    const int64_t blocks = s.count * blocks_of(s.K, 128) * blocks_of(s.C, 64);
    s.splits = std::max<int64_t>(std::min(264 / blocks, all_tiles / 256), 1);
  }
  const int64_t fixed = wgrad ? s.splits * filters + 9 * plan.groups * plan.K * plan.C : filters;
  const int64_t most = std::min((workspace_limit / 4 - fixed) / tile, int64_t{1} << 20);
  s.chunks = blocks_of(plan.tiles, std::max<int64_t>(most / 32 * 32, 256));
  s.tiles = blocks_of(blocks_of(plan.tiles, s.chunks), 32) * 32;
  s.chunks = blocks_of(plan.tiles, s.tiles);
  s.u = wgrad ? s.count * s.K * s.tiles : filters;
  s.v = s.count * s.C * s.tiles;
  s.m = wgrad ? s.splits * filters : s.count * s.K * s.tiles;
  s.total = wgrad && s.chunks > 1 ? 9 * plan.groups * plan.K * plan.C : 0;
  return s;
}

// Runs of tiles, of each of which y's channels have moments (conv_winograd_nonfused.cu).
int64_t nonfused_moment_tiles(const Plan&, Layout);

// --- launchers -----------------------------------------------------------------------------------

// kTensorCores: operands of the products rounded to TF32.
template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_fused(const ConvCall&, Direction);  // fprop and dgrad
template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_wgrad_fused(const ConvCall&);
template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_nonfused(const ConvCall&, Direction);  // all three

// One instantiation per dtype and layout, of fp32 one per engine.
#define FC_WINOGRAD_INSTANTIATE(launch, Wino, ...)                            \
  template int launch<Wino, float, Layout::kNCHW, false>(__VA_ARGS__);        \
  template int launch<Wino, float, Layout::kNHWC, false>(__VA_ARGS__);        \
  template int launch<Wino, float, Layout::kNCHW, true>(__VA_ARGS__);         \
  template int launch<Wino, float, Layout::kNHWC, true>(__VA_ARGS__);         \
  template int launch<Wino, __nv_bfloat16, Layout::kNCHW, true>(__VA_ARGS__); \
  template int launch<Wino, __nv_bfloat16, Layout::kNHWC, true>(__VA_ARGS__); \
  template int launch<Wino, __half, Layout::kNCHW, true>(__VA_ARGS__);        \
  template int launch<Wino, __half, Layout::kNHWC, true>(__VA_ARGS__);

}  // namespace fastconv::cuda::winograd
