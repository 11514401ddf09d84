// The tables of winograd_f2x2_3x3 and winograd_f4x4_3x3.
#include "conv_winograd.h"

namespace fastconv::cuda {
namespace {

using namespace winograd;

template <int kTileOut>
struct Transforms;
template <>
struct Transforms<2> {
  using type = WinogradF2x2_3x3;
};
template <>
struct Transforms<4> {
  using type = WinogradF4x4_3x3;
};

template <int kTileOut, class scalar_t, DType dtype, Layout layout, bool kTensorCores>
struct Fused {
  template <Direction direction>
  static int64_t workspace(const ConvProblem& p, const Device&) {
    return fused_workspace(p, direction, kTileOut);
  }
  template <Direction direction>
  static double cost(const ConvProblem& p, const Device& device) {
    return fused_cost(p, direction, dtype, layout, kTileOut, kTensorCores, device);
  }
  template <Direction direction>
  static int launch(const ConvCall& call) {
    using Wino = typename Transforms<kTileOut>::type;
    return launch_fused<Wino, scalar_t, layout, kTensorCores>(call, direction);
  }
  template <Direction direction>
  static constexpr ConvInstance instance(const char* name) {
    return {name,
            direction,
            dtype,
            layout,
            kTensorCores && dtype == DType::kFloat32,
            applicable<kTileOut>,
            workspace<direction>,
            cost<direction>,
            launch<direction>};
  }
};

#define FC_FUSED_ROWS(scalar_t, dtype, tensor_cores, dtype_name, suffix)               \
  Fused<kTileOut, scalar_t, dtype, Layout::kNCHW,                                      \
        tensor_cores>::template instance<Direction::kFprop>("fprop_" dtype_name        \
                                                            "_nchw_fused" suffix),     \
      Fused<kTileOut, scalar_t, dtype, Layout::kNHWC,                                  \
            tensor_cores>::template instance<Direction::kFprop>("fprop_" dtype_name    \
                                                                "_nhwc_fused" suffix), \
      Fused<kTileOut, scalar_t, dtype, Layout::kNCHW,                                  \
            tensor_cores>::template instance<Direction::kDgrad>("dgrad_" dtype_name    \
                                                                "_nchw_fused" suffix), \
      Fused<kTileOut, scalar_t, dtype, Layout::kNHWC,                                  \
            tensor_cores>::template instance<Direction::kDgrad>("dgrad_" dtype_name    \
                                                                "_nhwc_fused" suffix)

template <int kTileOut>
struct Table {
  static constexpr ConvInstance kInstances[] = {
      FC_FUSED_ROWS(float, DType::kFloat32, false, "f32", "_fma"),
      FC_FUSED_ROWS(__nv_bfloat16, DType::kBFloat16, true, "bf16", "_tf32"),
      FC_FUSED_ROWS(__half, DType::kFloat16, true, "f16", "_tf32"),
  };
  static constexpr int kSize = sizeof(kInstances) / sizeof(kInstances[0]);
};

}  // namespace

extern const ConvAlgorithm conv_winograd_f2x2_3x3{"winograd_f2x2_3x3", Table<2>::kInstances,
                                                  Table<2>::kSize};
extern const ConvAlgorithm conv_winograd_f4x4_3x3{"winograd_f4x4_3x3", Table<4>::kInstances,
                                                  Table<4>::kSize};

}  // namespace fastconv::cuda
