// The launcher of the fused Winograd wgrad kernels, to be instantiated once per tile
// (conv_winograd_fused_f*.cu).
#pragma once
#include <type_traits>

#include "conv_wgrad_winograd_fused.cuh"
#include "conv_winograd.h"

namespace fastconv::cuda::winograd {

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_wgrad_fused(const ConvCall& call) {
  using Engine = std::conditional_t<kTensorCores, WinogradTf32, WinogradFma>;
  using Shape = WinogradBlockShape<Wino>;
  const Plan plan =
      make_plan(call.problem, Direction::kWgrad, layout, Wino::kOut, sizeof(scalar_t));
  const Splits splits = splits_of(plan, Wino::kOut);
  float* const partial = static_cast<float*>(call.workspace);
  const WinogradWgradParams params{plan.in,
                                   plan.out,
                                   tiling_of(plan),
                                   static_cast<int32_t>(plan.pad_h),
                                   static_cast<int32_t>(plan.pad_w),
                                   static_cast<int32_t>(plan.C),
                                   static_cast<int32_t>(plan.K),
                                   plan.groups * plan.K,
                                   FastDivmod(static_cast<uint32_t>(splits.slabs)),
                                   FastDivmod(static_cast<uint32_t>(splits.c_blocks)),
                                   FastDivmod(static_cast<uint32_t>(splits.k_blocks)),
                                   static_cast<int32_t>(splits.steps),
                                   static_cast<int32_t>(splits.steps_per_split)};
  const LaunchConfig config{dim3(static_cast<unsigned>(splits.slabs * splits.splits)),
                            dim3(Shape::kThreads), Shape::kSharedBytes, call.stream};
  const int error = launch_kernel(
      conv_wgrad_winograd_fused_kernel < Wino, Engine, scalar_t, layout == Layout::kNHWC >, config,
      params, static_cast<const scalar_t*>(call.x), static_cast<const scalar_t*>(call.y), partial);
  if (error != 0) return error;
  const int64_t filters = plan.groups * plan.K;
  const int64_t blocks_per_filter = blocks_of(plan.C, kWinogradReduceThreads);
  const WinogradWgradReduceParams reduce{filters,
                                         static_cast<int32_t>(plan.C),
                                         static_cast<int32_t>(splits.splits),
                                         FastDivmod(static_cast<uint32_t>(blocks_per_filter)),
                                         plan.filter_k,
                                         plan.filter_c,
                                         plan.filter_r,
                                         plan.filter_s};
  const LaunchConfig reduce_config{dim3(static_cast<unsigned>(filters * blocks_per_filter)),
                                   dim3(kWinogradReduceThreads), 0, call.stream};
  return launch_kernel(conv_wgrad_winograd_reduce_kernel<scalar_t>, reduce_config, reduce,
                       static_cast<const float*>(partial), static_cast<scalar_t*>(call.w));
}

}  // namespace fastconv::cuda::winograd
