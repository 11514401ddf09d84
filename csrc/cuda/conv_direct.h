// The instances of `direct`, for its table (conv_direct.cu) and its launchers.
#pragma once
#include <cstdint>
#include <string>

#include "conv_algorithm.h"

namespace fastconv::cuda {

// Tiles of the instances of `direct`; the kernels' headers say what they are.
enum class GatherTileId : int { kK32 = 0, kK64 = 1, kK4 = 2 };

// fprop and dgrad of `direct` (conv_direct_gather.cu).
template <DType dtype, Layout layout, GatherTileId tile, Direction direction>
struct GatherInstance {
  static std::string applicable(const ConvProblem&);
  static int64_t workspace(const ConvProblem&, const Device&) { return 0; }
  static int64_t stats_workspace(const ConvProblem&, const Device&);  // fprop
  static double cost(const ConvProblem&, const Device&);
  static int launch(const ConvCall&);
};

enum class WgradTileId : int { kK32 = 0, kK4 = 1 };

// wgrad of `direct` (conv_direct_wgrad.cu).
template <DType dtype, Layout layout, WgradTileId tile>
struct WgradInstance {
  static std::string applicable(const ConvProblem&);
  static int64_t workspace(const ConvProblem&, const Device&);
  static double cost(const ConvProblem&, const Device&);
  static int launch(const ConvCall&);
};

}  // namespace fastconv::cuda
