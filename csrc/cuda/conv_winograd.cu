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

template <int kTileOut>
struct Table {
  template <Layout layout>
  using FusedF32 = Fused<kTileOut, float, DType::kFloat32, layout, false>;

  static constexpr ConvInstance kInstances[] = {
      FusedF32<Layout::kNCHW>::template instance<Direction::kFprop>("fprop_f32_nchw_fused"),
      FusedF32<Layout::kNHWC>::template instance<Direction::kFprop>("fprop_f32_nhwc_fused"),
      FusedF32<Layout::kNCHW>::template instance<Direction::kDgrad>("dgrad_f32_nchw_fused"),
      FusedF32<Layout::kNHWC>::template instance<Direction::kDgrad>("dgrad_f32_nhwc_fused"),
  };
  static constexpr int kSize = sizeof(kInstances) / sizeof(kInstances[0]);
};

}  // namespace

extern const ConvAlgorithm conv_winograd_f2x2_3x3{"winograd_f2x2_3x3", Table<2>::kInstances,
                                                  Table<2>::kSize};
extern const ConvAlgorithm conv_winograd_f4x4_3x3{"winograd_f4x4_3x3", Table<4>::kInstances,
                                                  Table<4>::kSize};

}  // namespace fastconv::cuda
