// The configurations of tma that multiply fp32 in TF32, once or three times; their launchers are
// compiled in conv_tma_tf32.cu, their rows are in conv_tma.cu.
#pragma once
#include "conv_tma.h"

namespace fastconv::cuda {

template <int M, int N, int STAGES>
using TmaTf32 =
    TmaConfig<Direction::kFprop, DType::kFloat32, WgmmaTile<float, M, N, STAGES>,
              Im2colNhwcVec<Direction::kFprop, Tf32Tile128, Tf32Tile64, 4>, Products::kTf32>;
template <int M, int N, int STAGES>
using TmaTf32x3 = TmaConfig<Direction::kFprop, DType::kFloat32, WgmmaSplitTile<M, N, STAGES>,
                            Im2colNhwcVec<Direction::kFprop, Tf32x3Tile128x64, Tf32x3Tile64, 4>,
                            Products::kTf32x3>;

template <class Config>
int launch_conv_tma_tf32(const ConvCall& call);

// X(name, configuration)
#define FC_TMA_TF32(X)                                            \
  X("fprop_tf32_nhwc_wgmma_128x128x32", TmaTf32<128, 128, 5>)     \
  X("fprop_tf32_nhwc_wgmma_256x128x32", TmaTf32<256, 128, 4>)     \
  X("fprop_tf32_nhwc_wgmma_128x256x32", TmaTf32<128, 256, 4>)     \
  X("fprop_tf32_nhwc_wgmma_128x64x32", TmaTf32<128, 64, 6>)       \
  X("fprop_tf32x3_nhwc_wgmma_128x128x32", TmaTf32x3<128, 128, 4>) \
  X("fprop_tf32x3_nhwc_wgmma_128x64x32", TmaTf32x3<128, 64, 6>)

}  // namespace fastconv::cuda
