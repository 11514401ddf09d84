// Winograd convolution on the GPU, what its launchers share: the plan of one direction and layout,
// what cannot run, and the launchers of each mechanism. The kernels: kernels/cuda/conv_*winograd*.
#pragma once
#include "conv_algorithm.h"
#include "detail/winograd_tile.cuh"

namespace fastconv::cuda {
namespace winograd {

inline int64_t blocks_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// fprop and dgrad: out[n,k,p,q] = sum_{c,r,s} in[n,c,p+r-pad_h,q+s-pad_w] filter[k,c,r,s], where
// dgrad has in = dy, out = dx, K and C exchanged, the filter flipped and transposed. wgrad:
// filter[k,c,r,s] = sum_{n,p,q} in[n,c,p+r-pad_h,q+s-pad_w] out[n,k,p,q], in = x, out = dy.
struct Plan {
  int64_t C, K, groups;  // channels of `in` and `out` in one group
  WinogradImages in, out;
  int64_t pad_h, pad_w;
  int64_t tiles_y, tiles_x, tiles;  // of `out`; tiles of all images
  // Strides of the filter's group, k, c, r, s, elements; dgrad's begin at the last tap.
  int64_t filter_g, filter_k, filter_c, filter_r, filter_s, filter_begin;
};
Plan make_plan(const ConvProblem&, Direction, Layout, int tile_out);
WinogradTiling tiling_of(const Plan&);

// What no Winograd kernel here runs.
template <int kTileOut>
std::string applicable(const ConvProblem&);

int64_t scalar_bytes(DType);

// Scratch beyond this is avoided by working in pieces, as far as one piece fits.
constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;

// --- fused: conv_fprop_winograd_fused.cuh --------------------------------------------------------

// Slabs, 32 filters of a group, whose transformed filters fill the workspace at a time.
struct FusedSlabs {
  int64_t total, per_group, at_a_time;
  int64_t bytes;  // of one
};
FusedSlabs fused_slabs(const Plan&, int tile_out);
int64_t fused_workspace(const ConvProblem&, Direction, int tile_out);
double fused_cost(const ConvProblem&, Direction, DType, Layout, int tile_out, bool tensor_cores,
                  const Device&);

// fprop and dgrad. kTensorCores: operands of the products rounded to TF32.
template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_fused(const ConvCall&, Direction);

}  // namespace winograd
}  // namespace fastconv::cuda
