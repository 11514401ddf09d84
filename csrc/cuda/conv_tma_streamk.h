// The configurations of tma whose clusters share the tiles that make no whole round
// (kernels/cuda/detail/conv_tma_work.cuh); their launchers are compiled in conv_tma_streamk.cu,
// their rows are in conv_tma.cu. One shape: where sharing is worth its sums' way through L2, gemm_k
// is long, and then the shape that reads least is the one to share.
#pragma once
#include "conv_tma.h"

namespace fastconv::cuda {

template <Direction direction, DType dtype, class scalar_t>
using TmaStreamk = TmaConfig<direction, dtype, WgmmaTile<scalar_t, 128, 256, 4>,
                             Im2colNhwcVec<direction, Mma128<scalar_t>, Mma64<scalar_t>, 8>,
                             Products::kIeee, 2, 1, 1, true>;

// Of sums that clusters leave for each other, and of their flags.
int64_t tma_left_bytes(const TmaShape&, const ConvProblem&, const Device&);

template <class Config>
int launch_conv_tma_streamk(const ConvCall& call);

// X(name, configuration)
#define FC_TMA_STREAMK(X)                                           \
  X("fprop_bf16_nhwc_wgmma_128x256x64_pair_m_streamk",              \
    TmaStreamk<Direction::kFprop, DType::kBFloat16, __nv_bfloat16>) \
  X("fprop_f16_nhwc_wgmma_128x256x64_pair_m_streamk",               \
    TmaStreamk<Direction::kFprop, DType::kFloat16, __half>)         \
  X("dgrad_bf16_nhwc_wgmma_128x256x64_pair_m_streamk",              \
    TmaStreamk<Direction::kDgrad, DType::kBFloat16, __nv_bfloat16>) \
  X("dgrad_f16_nhwc_wgmma_128x256x64_pair_m_streamk",               \
    TmaStreamk<Direction::kDgrad, DType::kFloat16, __half>)

}  // namespace fastconv::cuda
