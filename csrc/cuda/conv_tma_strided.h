// What conv_tma.cu's table needs of the dgrad of strides above 1 by TMA and wgmma
// (conv_tma_strided.cu).
#pragma once
#include "conv_im2col.h"
#include "conv_tma.h"

namespace fastconv::cuda {

std::string tma_strided_refusal(const TmaShape&, const ConvProblem&);
double tma_strided_cost(const TmaShape&, const ConvProblem&, const Device&);

template <class Config>
int launch_conv_tma_strided(const ConvCall& call);

template <DType dtype, class scalar_t, int M, int N, int STAGES>
using TmaStridedConfig =
    TmaConfig<Direction::kDgrad, dtype, WgmmaTile<scalar_t, M, N, STAGES>,
              Im2colNhwcVec<Direction::kDgrad, Mma128<scalar_t>, Mma64<scalar_t>, 8>>;

// X(name, dtype, scalar type, BLOCK_M, BLOCK_N, NUM_STAGES): the table and the explicit
// instantiations are both made of this list.
#define FC_TMA_STRIDED_TILES(X, dtype, name, scalar_t)                            \
  X("dgrad_" name "_nhwc_wgmma_strided_128x128x64", dtype, scalar_t, 128, 128, 5) \
  X("dgrad_" name "_nhwc_wgmma_strided_256x128x64", dtype, scalar_t, 256, 128, 4) \
  X("dgrad_" name "_nhwc_wgmma_strided_128x64x64", dtype, scalar_t, 128, 64, 6)
#define FC_TMA_STRIDED_INSTANCES(X)                                \
  FC_TMA_STRIDED_TILES(X, DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_TMA_STRIDED_TILES(X, DType::kFloat16, "f16", __half)

}  // namespace fastconv::cuda
