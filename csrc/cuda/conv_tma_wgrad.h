// What conv_tma.cu's table needs of the wgrad by TMA and wgmma (conv_tma_wgrad.cu).
#pragma once
#include <string>

#include "conv_algorithm.h"
#include "conv_im2col.h"

namespace fastconv::cuda {

struct TmaWgradShape {
  DType dtype;
  int block_m, block_n;
};

// The ranges of pixels, in tiles of 64, and with how many items of work.
struct TmaWgradSplit {
  int64_t m_tiles, n_tiles;
  int64_t k_tiles, splits, split_tiles;
  int64_t items() const { return m_tiles * n_tiles * splits; }
};
// A function of the problem and the SM count alone.
TmaWgradSplit tma_wgrad_split(const TmaWgradShape&, const ConvProblem&, const Device&);

std::string tma_wgrad_refusal(const TmaWgradShape&, const ConvProblem&);
int64_t tma_wgrad_workspace(const TmaWgradShape&, const ConvProblem&, const Device&);
double tma_wgrad_cost(const TmaWgradShape&, const ConvProblem&, const Device&);

// Fallback: the configuration of im2col that takes bases at any alignment.
template <DType dtype, class scalar, int block_m, int block_n, int stages>
struct TmaWgradConfig {
  using scalar_t = scalar;
  using Fallback = Im2colNhwcVec<Direction::kWgrad, Mma128<scalar_t>, Mma64<scalar_t>, 8>;
  static constexpr TmaWgradShape shape{dtype, block_m, block_n};
  static constexpr int NUM_STAGES = stages;
};
template <class Config>
int launch_conv_tma_wgrad(const ConvCall& call);

// X(name, dtype, scalar type, BLOCK_M, BLOCK_N, NUM_STAGES): the table and the explicit
// instantiations are both made of this list.
#define FC_TMA_WGRAD_TILES(X, dtype, name, scalar_t)                      \
  X("wgrad_" name "_nhwc_wgmma_128x128x64", dtype, scalar_t, 128, 128, 6) \
  X("wgrad_" name "_nhwc_wgmma_256x128x64", dtype, scalar_t, 256, 128, 4) \
  X("wgrad_" name "_nhwc_wgmma_128x256x64", dtype, scalar_t, 128, 256, 4) \
  X("wgrad_" name "_nhwc_wgmma_64x256x64", dtype, scalar_t, 64, 256, 4)
#define FC_TMA_WGRAD_INSTANCES(X)                                \
  FC_TMA_WGRAD_TILES(X, DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_TMA_WGRAD_TILES(X, DType::kFloat16, "f16", __half)

}  // namespace fastconv::cuda
