// The table of `direct`; its launchers are in conv_direct_gather.cu and conv_direct_wgrad.cu.
#include "conv_direct.h"

namespace fastconv::cuda {
namespace {

#define GATHER_ROW(direction, direction_name, dtype, dtype_name, layout, layout_name, tile, \
                   tile_name)                                                               \
  {direction_name "_" dtype_name "_" layout_name "_smem_" tile_name,                        \
   direction,                                                                               \
   dtype,                                                                                   \
   layout,                                                                                  \
   false,                                                                                   \
   GatherInstance<dtype, layout, tile, direction>::applicable,                              \
   GatherInstance<dtype, layout, tile, direction>::workspace,                               \
   GatherInstance<dtype, layout, tile, direction>::cost,                                    \
   GatherInstance<dtype, layout, tile, direction>::launch}

#define GATHER_TILES(direction, direction_name, dtype, dtype_name, layout, layout_name, q32, q64) \
  GATHER_ROW(direction, direction_name, dtype, dtype_name, layout, layout_name,                   \
             GatherTileId::kK32, "k32_" q32),                                                     \
      GATHER_ROW(direction, direction_name, dtype, dtype_name, layout, layout_name,               \
                 GatherTileId::kK64, "k64_" q64),                                                 \
      GATHER_ROW(direction, direction_name, dtype, dtype_name, layout, layout_name,               \
                 GatherTileId::kK4, "k4_" q32)

#define DIRECT_ROWS(dtype, dtype_name, layout, layout_name, q32, q64)                         \
  GATHER_TILES(Direction::kFprop, "fprop", dtype, dtype_name, layout, layout_name, q32, q64), \
      GATHER_TILES(Direction::kDgrad, "dgrad", dtype, dtype_name, layout, layout_name, q32, q64)

#define DIRECT_DTYPE(dtype, dtype_name, q32, q64)                  \
  DIRECT_ROWS(dtype, dtype_name, Layout::kNCHW, "nchw", q32, q64), \
      DIRECT_ROWS(dtype, dtype_name, Layout::kNHWC, "nhwc", q32, q64)

const ConvInstance kInstances[] = {
    DIRECT_DTYPE(DType::kFloat32, "f32", "q256", "q64"),
    DIRECT_DTYPE(DType::kFloat64, "f64", "q128", "q32"),
    DIRECT_DTYPE(DType::kBFloat16, "bf16", "q256", "q64"),
    DIRECT_DTYPE(DType::kFloat16, "f16", "q256", "q64"),
};

}  // namespace

extern const ConvAlgorithm conv_direct = {"direct", kInstances,
                                          sizeof(kInstances) / sizeof(kInstances[0])};

}  // namespace fastconv::cuda
