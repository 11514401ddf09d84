// The launcher of the fused Winograd kernels, to be instantiated once per tile
// (conv_winograd_fused_f*.cu).
#pragma once
#include <type_traits>

#include "conv_filter_winograd.cuh"
#include "conv_fprop_winograd_fused.cuh"
#include "conv_moments.h"
#include "conv_winograd.h"

namespace fastconv::cuda::winograd {

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_slabs(const ConvCall& call, Direction direction, const Plan& plan, const Slabs& slabs,
                 const MomentTiles<float>& moments) {
  using Engine = std::conditional_t<kTensorCores, WinogradTf32, WinogradFma>;
  using Shape = WinogradBlockShape<Wino>;
  const bool dgrad = direction == Direction::kDgrad;
  const int64_t steps = blocks_of(plan.C, kWinogradDepth);
  const FastDivmod slabs_per_group(static_cast<uint32_t>(slabs.per_group));
  float* const u = static_cast<float*>(call.workspace);
  const scalar_t* const w = static_cast<const scalar_t*>(call.w) + plan.filter_begin;
  for (int64_t begin = 0; begin < slabs.total; begin += slabs.at_a_time) {
    const int64_t count = std::min(slabs.at_a_time, slabs.total - begin);
    const WinogradFilterParams filter{plan.filter_g,
                                      plan.filter_k,
                                      plan.filter_c,
                                      static_cast<int32_t>(plan.filter_r),
                                      static_cast<int32_t>(plan.filter_s),
                                      static_cast<int32_t>(plan.K),
                                      static_cast<int32_t>(plan.C),
                                      FastDivmod(static_cast<uint32_t>(steps)),
                                      slabs_per_group,
                                      static_cast<uint32_t>(begin)};
    const LaunchConfig filter_config{dim3(static_cast<unsigned>(steps * count)),
                                     dim3(kWinogradPoint), Shape::kStage * sizeof(float),
                                     call.stream};
    int error = launch_kernel(conv_filter_winograd_kernel<Wino, Engine, scalar_t>, filter_config,
                              filter, w, u);
    if (error != 0) return error;
    WinogradFpropParams params{plan.in,
                               plan.out,
                               tiling_of(plan),
                               static_cast<int32_t>(plan.pad_h),
                               static_cast<int32_t>(plan.pad_w),
                               static_cast<int32_t>(plan.C),
                               static_cast<int32_t>(plan.K),
                               static_cast<int32_t>(steps),
                               FastDivmod(static_cast<uint32_t>(count)),
                               slabs_per_group,
                               static_cast<uint32_t>(begin)};
    if (!dgrad)
      set_epilogue(call, layout, sizeof(scalar_t), params.out, params.epilogue, params.residual);
    params.moments = moments;
    const LaunchConfig config{
        dim3(static_cast<unsigned>(blocks_of(plan.tiles, kWinogradBlock) * count)),
        dim3(Shape::kThreads), Shape::kSharedBytes, call.stream};
    error = launch_kernel(
        conv_fprop_winograd_fused_kernel < Wino, Engine, scalar_t, layout == Layout::kNHWC >,
        config, params, static_cast<const scalar_t*>(dgrad ? call.y : call.x),
        static_cast<const float*>(u), static_cast<const scalar_t*>(dgrad ? nullptr : call.bias),
        static_cast<scalar_t*>(dgrad ? call.x : call.y));
    if (error != 0) return error;
  }
  return 0;
}

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_fused(const ConvCall& call, Direction direction) {
  const Plan plan = make_plan(call.problem, direction, layout, Wino::kOut, sizeof(scalar_t));
  const Slabs slabs = slabs_of(plan, Wino::kOut);
  return launch_with_moments(
      call, direction, moment_tiles(plan),
      [&](const MomentTiles<float>& moments) {
        return launch_slabs<Wino, scalar_t, layout, kTensorCores>(call, direction, plan, slabs,
                                                                  moments);
      },
      slabs.at_a_time * slabs.bytes);
}

}  // namespace fastconv::cuda::winograd
