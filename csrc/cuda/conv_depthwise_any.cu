// Launchers of the depthwise kernels that take every problem, and of the sum over splits.
#include "conv_depthwise.h"
#include "conv_dgrad_depthwise_any.cuh"
#include "conv_fprop_depthwise_any.cuh"
#include "conv_wgrad_depthwise_any.cuh"
#include "conv_wgrad_depthwise_sum.cuh"

namespace fastconv::cuda::depthwise {
namespace {

constexpr int64_t kStagedBytes = 48 * 1024;
// Outputs of one thread: what staging the filters is spread over.
constexpr int64_t kPixelsPerThread = 4;

struct AnyPlan {
  DepthwiseAny g;
  FastDivmod tap_blocks;
  int lanes, slots;
  int64_t blocks, splits, shared_bytes;
};

// What of the problem the kernels need; `walked` is the extents of the tensor they walk over.
DepthwiseAny geometry(const ConvProblem& p, const int64_t (&walked)[3]) {
  DepthwiseAny g;
  g.C = static_cast<int>(p.C);
  g.K = static_cast<int>(p.K);
  g.multiplier = static_cast<int>(p.K / p.C);
  g.taps = static_cast<int>(p.filter_size());
  g.pixels = p.N;
  for (int i = 0; i < 3; ++i) {
    g.in[i] = static_cast<int>(p.in[i]);
    g.filter[i] = static_cast<int>(p.filter[i]);
    g.out[i] = static_cast<int>(p.out[i]);
    g.padding[i] = static_cast<int>(p.padding[i]);
    g.stride[i] = static_cast<int>(p.stride[i]);
    g.dilation[i] = static_cast<int>(p.dilation[i]);
    g.extent[i] = FastDivmod(static_cast<uint32_t>(walked[i]));
    g.pixels *= walked[i];
  }
  g.in_size = p.in_size();
  g.out_size = p.out_size();
  g.wide = g.pixels > kMaxCount;
  return g;
}

// fprop and dgrad; `vector` channels per thread.
AnyPlan plan_any(const ConvProblem& p, bool dgrad, Layout layout, int vector) {
  AnyPlan plan;
  plan.g = geometry(p, dgrad ? p.in : p.out);
  const int64_t channels = dgrad ? p.C : p.K;
  plan.lanes = layout == Layout::kNCHW ? 1 : channel_lanes(ceil_div(channels, vector), 32);
  plan.slots = kDepthwiseAnyThreads / plan.lanes;
  const int64_t channel_blocks = ceil_div(channels, int64_t{plan.lanes} * vector);
  const int64_t most_ranges = kMaxCount / channel_blocks;
  plan.g.range = std::max(plan.slots * kPixelsPerThread, ceil_div(plan.g.pixels, most_ranges));
  plan.g.blocks = FastDivmod(static_cast<uint32_t>(channel_blocks));
  plan.blocks = channel_blocks * ceil_div(plan.g.pixels, plan.g.range);
  const int64_t filters = int64_t{plan.lanes} * vector * (dgrad ? plan.g.multiplier : 1);
  plan.shared_bytes = filters * p.filter_size() * 4;
  plan.g.staged = plan.shared_bytes <= kStagedBytes;
  if (!plan.g.staged) plan.shared_bytes = 0;
  return plan;
}

// Of the outputs, a block each per group of channels.
int64_t ranges(const AnyPlan& plan) { return ceil_div(plan.g.pixels, plan.g.range); }

AnyPlan plan_any_wgrad(const ConvProblem& p, Layout layout, int vector, const Device& device) {
  AnyPlan plan;
  plan.g = geometry(p, p.out);
  plan.lanes = layout == Layout::kNCHW ? 1 : channel_lanes(ceil_div(p.K, vector), 32);
  plan.slots = kDepthwiseAnyThreads / plan.lanes;
  const int64_t channel_blocks = ceil_div(p.K, int64_t{plan.lanes} * vector);
  const int64_t tap_blocks = ceil_div(p.filter_size(), kTapsPerBlock);
  // Two waves of the blocks that an SM holds, each with enough outputs to be worth its sum.
  const int64_t wanted = ceil_div(int64_t{device.sm_count} * 8, channel_blocks * tap_blocks);
  plan.g.range = std::max(int64_t{plan.slots} * 16, ceil_div(plan.g.pixels, wanted));
  plan.splits = ceil_div(plan.g.pixels, plan.g.range);
  plan.g.blocks = FastDivmod(static_cast<uint32_t>(channel_blocks));
  plan.tap_blocks = FastDivmod(static_cast<uint32_t>(tap_blocks));
  plan.blocks = channel_blocks * tap_blocks * plan.splits;
  plan.g.staged = false;
  plan.shared_bytes = int64_t{kDepthwiseAnyThreads} * vector * 4;
  return plan;
}

// Channels per thread that the problem and the pointers allow.
template <class scalar_t>
int vector_for(const ConvCall& call, Layout layout) {
  const int vector = 16 / sizeof(scalar_t);
  const ConvProblem& p = call.problem;
  return layout == Layout::kNHWC && p.K == p.C && p.C % vector == 0 && aligned_to_vector(call.x) &&
                 aligned_to_vector(call.y) && epilogue_by_vectors(call, vector)
             ? vector
             : 1;
}

template <class scalar_t, bool NHWC, int VEC>
int launch_fprop(const ConvCall& call, const AnyPlan& plan) {
  const dim3 block(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(plan.slots));
  return launch_either<true>(
      call, ranges(plan), [&](auto stats, const MomentTiles<float>& moments) {
        return launch_kernel(
            conv_fprop_depthwise_any_kernel<scalar_t, NHWC, VEC, decltype(stats)::value>,
            config_for(plan.blocks, block, plan.shared_bytes, call.stream), plan.g,
            static_cast<const scalar_t*>(call.x), static_cast<const scalar_t*>(call.w),
            static_cast<const scalar_t*>(call.bias), store_epilogue<float>(call.epilogue), moments,
            static_cast<scalar_t*>(call.y));
      });
}

template <class scalar_t, bool NHWC, int VEC>
int launch_dgrad(const ConvCall& call, const AnyPlan& plan) {
  const dim3 block(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(plan.slots));
  return launch_kernel(conv_dgrad_depthwise_any_kernel<scalar_t, NHWC, VEC>,
                       config_for(plan.blocks, block, plan.shared_bytes, call.stream), plan.g,
                       static_cast<const scalar_t*>(call.y), static_cast<const scalar_t*>(call.w),
                       static_cast<scalar_t*>(call.x));
}

template <class scalar_t, bool NHWC, int VEC>
int launch_wgrad(const ConvCall& call, const AnyPlan& plan) {
  const dim3 block(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(plan.slots));
  return launch_kernel(conv_wgrad_depthwise_any_kernel<scalar_t, NHWC, VEC>,
                       config_for(plan.blocks, block, plan.shared_bytes, call.stream), plan.g,
                       plan.tap_blocks, static_cast<const scalar_t*>(call.x),
                       static_cast<const scalar_t*>(call.y), static_cast<float*>(call.workspace));
}

}  // namespace

template <DType dtype>
int launch_wgrad_sum(const ConvCall& call, int64_t splits) {
  using scalar_t = scalar_of<dtype>;
  const int64_t elements = call.problem.K * call.problem.filter_size();
  return launch_kernel(conv_wgrad_depthwise_sum_kernel<scalar_t>,
                       config_for(ceil_div(elements, kDepthwiseSumThreads),
                                  dim3(kDepthwiseSumThreads), 0, call.stream),
                       static_cast<const float*>(call.workspace), static_cast<scalar_t*>(call.w),
                       elements, static_cast<int>(splits));
}

template <DType dtype, Layout layout>
int64_t any_wgrad_workspace(const ConvProblem& p, const Device& device) {
  // The vector and the scalar path cut the outputs differently.
  const int vector = 16 / sizeof(scalar_of<dtype>);
  const int64_t splits = std::max(plan_any_wgrad(p, layout, 1, device).splits,
                                  plan_any_wgrad(p, layout, vector, device).splits);
  return splits * p.K * p.filter_size() * 4;
}

template <DType dtype, Layout layout>
int64_t any_stats_workspace(const ConvProblem& p, const Device&) {
  // As above.
  const int vector = 16 / sizeof(scalar_of<dtype>);
  return moments_bytes(p.K, std::max(ranges(plan_any(p, false, layout, 1)),
                                     ranges(plan_any(p, false, layout, vector))));
}

template <DType dtype, Direction direction, Layout layout>
int launch_any(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  constexpr bool nhwc = layout == Layout::kNHWC;
  constexpr int vector = nhwc ? 16 / sizeof(scalar_t) : 1;
  const bool scalar = vector_for<scalar_t>(call, layout) == 1;
  if constexpr (direction == Direction::kWgrad) {
    const AnyPlan plan = plan_any_wgrad(call.problem, layout, scalar ? 1 : vector, call.device);
    const int error = scalar ? launch_wgrad<scalar_t, nhwc, 1>(call, plan)
                             : launch_wgrad<scalar_t, nhwc, vector>(call, plan);
    return error != 0 ? error : launch_wgrad_sum<dtype>(call, plan.splits);
  } else {
    constexpr bool dgrad = direction == Direction::kDgrad;
    AnyPlan plan = plan_any(call.problem, dgrad, layout, scalar ? 1 : vector);
    plan.g.y_channels = call.y_channels();
    if constexpr (dgrad)
      return scalar ? launch_dgrad<scalar_t, nhwc, 1>(call, plan)
                    : launch_dgrad<scalar_t, nhwc, vector>(call, plan);
    else
      return scalar ? launch_fprop<scalar_t, nhwc, 1>(call, plan)
                    : launch_fprop<scalar_t, nhwc, vector>(call, plan);
  }
}

#define FC_ANY_LAYOUT(dtype, layout)                                                      \
  template int launch_any<dtype, Direction::kFprop, layout>(const ConvCall&);             \
  template int launch_any<dtype, Direction::kDgrad, layout>(const ConvCall&);             \
  template int launch_any<dtype, Direction::kWgrad, layout>(const ConvCall&);             \
  template int64_t any_wgrad_workspace<dtype, layout>(const ConvProblem&, const Device&); \
  template int64_t any_stats_workspace<dtype, layout>(const ConvProblem&, const Device&);
#define FC_ANY(dtype)                 \
  FC_ANY_LAYOUT(dtype, Layout::kNCHW) \
  FC_ANY_LAYOUT(dtype, Layout::kNHWC) \
  template int launch_wgrad_sum<dtype>(const ConvCall&, int64_t);
FC_ANY(DType::kFloat32)
FC_ANY(DType::kBFloat16)
FC_ANY(DType::kFloat16)

}  // namespace fastconv::cuda::depthwise
