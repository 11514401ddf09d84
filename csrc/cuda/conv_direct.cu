// The table of `direct`; its launchers are in conv_direct_gather.cu and conv_direct_wgrad.cu.
#include "conv_direct.h"

namespace fastconv::cuda {
namespace {

template <DType dtype, GatherTileId tile, Layout layout, Direction direction>
constexpr ConvInstance gather_row(const char* name) {
  using Instance = GatherInstance<dtype, layout, tile, direction>;
  return {name,
          direction,
          dtype,
          layout,
          Products::kIeee,
          Instance::applicable,
          Instance::workspace,
          Instance::cost,
          Instance::launch,
          direction == Direction::kFprop ? Instance::stats_workspace : nullptr};
}

template <DType dtype, WgradTileId tile, Layout layout>
constexpr ConvInstance wgrad_row(const char* name) {
  using Instance = WgradInstance<dtype, layout, tile>;
  return {name,
          Direction::kWgrad,
          dtype,
          layout,
          Products::kIeee,
          Instance::applicable,
          Instance::workspace,
          Instance::cost,
          Instance::launch};
}

// clang-format off
#define GATHER_ROWS(dtype_name, tile_name, ...)                                        \
  gather_row<__VA_ARGS__, Layout::kNCHW, Direction::kFprop>(                           \
      "fprop_" dtype_name "_nchw_smem_" tile_name),                                    \
  gather_row<__VA_ARGS__, Layout::kNCHW, Direction::kDgrad>(                           \
      "dgrad_" dtype_name "_nchw_smem_" tile_name),                                    \
  gather_row<__VA_ARGS__, Layout::kNHWC, Direction::kFprop>(                           \
      "fprop_" dtype_name "_nhwc_smem_" tile_name),                                    \
  gather_row<__VA_ARGS__, Layout::kNHWC, Direction::kDgrad>(                           \
      "dgrad_" dtype_name "_nhwc_smem_" tile_name)
#define WGRAD_ROWS(dtype_name, tile_name, ...)                                         \
  wgrad_row<__VA_ARGS__, Layout::kNCHW>("wgrad_" dtype_name "_nchw_smem_" tile_name),  \
  wgrad_row<__VA_ARGS__, Layout::kNHWC>("wgrad_" dtype_name "_nhwc_smem_" tile_name)
// clang-format on

const ConvInstance kInstances[] = {
    GATHER_ROWS("f32", "k32_q256", DType::kFloat32, GatherTileId::kK32),
    GATHER_ROWS("f32", "k64_q64", DType::kFloat32, GatherTileId::kK64),
    GATHER_ROWS("f32", "k4_q256", DType::kFloat32, GatherTileId::kK4),
    GATHER_ROWS("f64", "k32_q128", DType::kFloat64, GatherTileId::kK32),
    GATHER_ROWS("f64", "k4_q128", DType::kFloat64, GatherTileId::kK4),
    GATHER_ROWS("bf16", "k32_q256", DType::kBFloat16, GatherTileId::kK32),
    GATHER_ROWS("bf16", "k64_q64", DType::kBFloat16, GatherTileId::kK64),
    GATHER_ROWS("bf16", "k4_q256", DType::kBFloat16, GatherTileId::kK4),
    GATHER_ROWS("f16", "k32_q256", DType::kFloat16, GatherTileId::kK32),
    GATHER_ROWS("f16", "k64_q64", DType::kFloat16, GatherTileId::kK64),
    GATHER_ROWS("f16", "k4_q256", DType::kFloat16, GatherTileId::kK4),
    WGRAD_ROWS("f32", "k32_c64", DType::kFloat32, WgradTileId::kK32),
    WGRAD_ROWS("f32", "k4_c16_slices8", DType::kFloat32, WgradTileId::kK4),
    WGRAD_ROWS("f64", "k32_c64", DType::kFloat64, WgradTileId::kK32),
    WGRAD_ROWS("f64", "k4_c16_slices8", DType::kFloat64, WgradTileId::kK4),
    WGRAD_ROWS("bf16", "k32_c64", DType::kBFloat16, WgradTileId::kK32),
    WGRAD_ROWS("bf16", "k4_c16_slices8", DType::kBFloat16, WgradTileId::kK4),
    WGRAD_ROWS("f16", "k32_c64", DType::kFloat16, WgradTileId::kK32),
    WGRAD_ROWS("f16", "k4_c16_slices8", DType::kFloat16, WgradTileId::kK4),
};

}  // namespace

extern const ConvAlgorithm conv_direct = {"direct", kInstances,
                                          sizeof(kInstances) / sizeof(kInstances[0])};

}  // namespace fastconv::cuda
