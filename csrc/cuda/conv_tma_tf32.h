// The configurations of tma that multiply fp32 in TF32, once or three times; their launchers are
// compiled in conv_tma_tf32.cu, their rows are in conv_tma.cu.
#pragma once
#include "conv_tma.h"

namespace fastconv::cuda {

template <Direction direction, int M, int N, int STAGES, int PAIR_M = 1, int PAIR_N = 1>
using TmaTf32 = TmaConfig<direction, DType::kFloat32, WgmmaTile<float, M, N, STAGES>,
                          Im2colNhwcVec<direction, Tf32Tile128, Tf32Tile64, 4>, Products::kTf32,
                          PAIR_M, PAIR_N>;
template <Direction direction, int M, int N, int STAGES, int PAIR_M = 1, int PAIR_N = 1>
using TmaTf32x3 = TmaConfig<direction, DType::kFloat32, WgmmaSplitTile<M, N, STAGES>,
                            Im2colNhwcVec<direction, Tf32x3Tile128x64, Tf32x3Tile64, 4>,
                            Products::kTf32x3, PAIR_M, PAIR_N>;

template <class Config>
int launch_conv_tma_tf32(const ConvCall& call);

// w as the configuration reads it, in the workspace.
int launch_conv_filter_tf32(const TmaShape&, const ConvCall& call);

// X(name, configuration)
#define FC_TMA_TF32_TILES(X, d, dn)                                         \
  X(dn "_tf32_nhwc_wgmma_128x128x32", TmaTf32<d, 128, 128, 5>)              \
  X(dn "_tf32_nhwc_wgmma_256x128x32", TmaTf32<d, 256, 128, 4>)              \
  X(dn "_tf32_nhwc_wgmma_128x256x32", TmaTf32<d, 128, 256, 4>)              \
  X(dn "_tf32_nhwc_wgmma_128x64x32", TmaTf32<d, 128, 64, 6>)                \
  X(dn "_tf32_nhwc_wgmma_128x128x32_pair_n", TmaTf32<d, 128, 128, 5, 1, 2>) \
  X(dn "_tf32_nhwc_wgmma_256x128x32_pair_m", TmaTf32<d, 256, 128, 4, 2, 1>) \
  X(dn "_tf32_nhwc_wgmma_128x256x32_pair_m", TmaTf32<d, 128, 256, 4, 2, 1>) \
  X(dn "_tf32x3_nhwc_wgmma_128x128x32", TmaTf32x3<d, 128, 128, 4>)          \
  X(dn "_tf32x3_nhwc_wgmma_128x64x32", TmaTf32x3<d, 128, 64, 6>)            \
  X(dn "_tf32x3_nhwc_wgmma_128x64x32_pair_m", TmaTf32x3<d, 128, 64, 6, 2, 1>)
#define FC_TMA_TF32(X)                             \
  FC_TMA_TF32_TILES(X, Direction::kFprop, "fprop") \
  FC_TMA_TF32_TILES(X, Direction::kDgrad, "dgrad")

}  // namespace fastconv::cuda
