// Launchers of the NHWC depthwise kernels of compile-time filter size.
#include "conv_depthwise.h"
#include "conv_dgrad_depthwise_nhwc.cuh"
#include "conv_fprop_depthwise_nhwc.cuh"
#include "conv_wgrad_depthwise_nhwc.cuh"

namespace fastconv::cuda::depthwise {
namespace {

// Channels of a block: 512 bytes of fp32 or 256 of a 16-bit type, so that the staged filter of 7x7
// taps leaves room for several blocks.
constexpr int kChannels = 128;

struct WindowPlan {
  DepthwiseWindow g;
  int lanes, slots;
  int64_t blocks, shared_bytes;
};

// `vector` channels per thread; `tile` outputs of a row at a time.
WindowPlan plan_window(const ConvProblem& p, bool dgrad, int r, int stride, int tile, int vector,
                       const Device& device) {
  WindowPlan plan;
  DepthwiseWindow& g = plan.g;
  const int64_t(&in)[3] = dgrad ? p.out : p.in;
  const int64_t(&out)[3] = dgrad ? p.in : p.out;
  g.C = static_cast<int>(p.C);
  g.in_h = static_cast<int>(in[1]), g.in_w = static_cast<int>(in[2]);
  g.out_h = static_cast<int>(out[1]), g.out_w = static_cast<int>(out[2]);
  g.mirrored = dgrad && stride == 1;
  g.pad_h = static_cast<int>(g.mirrored ? r - 1 - p.padding[1] : p.padding[1]);
  g.pad_w = static_cast<int>(g.mirrored ? r - 1 - p.padding[2] : p.padding[2]);
  // Tiles of strided dgrad start at an even w + pad.
  const int64_t ahead = dgrad && stride == 2 ? g.pad_w & 1 : 0;
  g.tiles = static_cast<int>(ceil_div(out[2] + ahead, tile));

  const int64_t vectors = p.C / vector, rows = p.N * out[1];
  plan.lanes = channel_lanes(vectors, kChannels / vector);
  const int64_t channel_blocks = ceil_div(vectors, plan.lanes);
  // Longer walks spread the filter's staging and the indexing; shorter ones fill the GPU.
  const int64_t threads_of_single_tiles = vectors * rows * g.tiles;
  g.segment =
      static_cast<int>(clamp(threads_of_single_tiles / (int64_t{device.sm_count} * 2048), 1, 8));
  const int64_t segments = ceil_div(g.tiles, g.segment);
  g.jobs = static_cast<uint32_t>(rows * segments);
  plan.slots = kDepthwiseThreads / plan.lanes;
  // No less than a warp, whose lanes add up statistics together.
  while (plan.lanes * plan.slots > 32 && plan.slots / 2 >= rows * segments) plan.slots /= 2;
  g.channel_blocks = FastDivmod(static_cast<uint32_t>(channel_blocks));
  g.segments = FastDivmod(static_cast<uint32_t>(segments));
  g.rows = FastDivmod(static_cast<uint32_t>(g.out_h));
  g.job_outputs = FastDivmod(static_cast<uint32_t>(g.segment * tile));
  plan.blocks = channel_blocks * ceil_div(rows * segments, plan.slots);
  plan.shared_bytes = (r * r + 1) * int64_t{plan.lanes * vector + kFilterSkew} * 4;
  return plan;
}

int64_t spatial_blocks(const WindowPlan& plan) {
  return plan.blocks / plan.g.channel_blocks.divisor;
}

struct WindowWgradPlan {
  DepthwiseWgradWindow g;
  int lanes, slices;
  int64_t blocks, splits, shared_bytes;
};

WindowWgradPlan plan_window_wgrad(const ConvProblem& p, int r, int most_threads, int vector,
                                  const Device& device) {
  WindowWgradPlan plan;
  DepthwiseWgradWindow& g = plan.g;
  g.C = static_cast<int>(p.C);
  g.in_h = static_cast<int>(p.in[1]), g.in_w = static_cast<int>(p.in[2]);
  g.out_h = static_cast<int>(p.out[1]), g.out_w = static_cast<int>(p.out[2]);
  g.pad_h = static_cast<int>(p.padding[1]), g.pad_w = static_cast<int>(p.padding[2]);
  g.rows = p.N * p.out[1];
  const int64_t vectors = p.C / vector;
  plan.lanes = channel_lanes(vectors, kChannels / vector);
  plan.slices =
      static_cast<int>(clamp(most_threads / (plan.lanes * r), 1, std::min(g.rows, int64_t{64})));
  const int64_t channel_blocks = ceil_div(vectors, plan.lanes);
  // About four blocks per SM, but 64 outputs for a thread: its sums have to be worth their adding.
  const int64_t wanted = ceil_div(int64_t{device.sm_count} * 4, channel_blocks);
  const int64_t least = plan.slices * ceil_div(64, p.out[2]);
  g.range = std::max(least, ceil_div(g.rows, wanted));
  plan.splits = ceil_div(g.rows, g.range);
  g.channel_blocks = FastDivmod(static_cast<uint32_t>(channel_blocks));
  g.out_rows = FastDivmod(static_cast<uint32_t>(g.out_h));
  plan.blocks = channel_blocks * plan.splits;
  plan.shared_bytes = int64_t{r * r} * plan.lanes * vector * 4;
  return plan;
}

}  // namespace

template <DType dtype, int R, int STRIDE>
int64_t window_wgrad_workspace(const ConvProblem& p, const Device& device) {
  const int vector = 16 / sizeof(scalar_of<dtype>);
  const int64_t splits = plan_window_wgrad(p, R, kWgradWindowThreads<R>, vector, device).splits;
  // Operands that are not aligned to a vector take the kernel for every problem.
  return std::max(splits * p.C * (R * R) * 4, any_wgrad_workspace<dtype, Layout::kNHWC>(p, device));
}

template <DType dtype, int R, int STRIDE>
int64_t window_stats_workspace(const ConvProblem& p, const Device& device) {
  using scalar_t = scalar_of<dtype>;
  constexpr int vector = 16 / sizeof(scalar_t),
                tile = FpropWindow<scalar_t, R, STRIDE>::Taps::kTile;
  const WindowPlan plan = plan_window(p, false, R, STRIDE, tile, vector, device);
  // Operands that are not aligned to a vector take the kernel for every problem.
  return std::max(moments_bytes(p.K, spatial_blocks(plan)),
                  any_stats_workspace<dtype, Layout::kNHWC>(p, device));
}

template <DType dtype, Direction direction, int R, int STRIDE>
int launch_window(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  constexpr int vector = 16 / sizeof(scalar_t);
  if (!aligned_to_vector(call.x) || !aligned_to_vector(call.y) ||
      !epilogue_by_vectors(call, vector))
    return launch_any<dtype, direction, Layout::kNHWC>(call);
  const ConvProblem& p = call.problem;
  scalar_t* const x = static_cast<scalar_t*>(call.x);
  scalar_t* const y = static_cast<scalar_t*>(call.y);
  const scalar_t* const w = static_cast<const scalar_t*>(call.w);
  const scalar_t* const bias = static_cast<const scalar_t*>(call.bias);
  if constexpr (direction == Direction::kWgrad) {
    const WindowWgradPlan plan =
        plan_window_wgrad(p, R, kWgradWindowThreads<R>, vector, call.device);
    const dim3 block(static_cast<unsigned>(plan.lanes), R, static_cast<unsigned>(plan.slices));
    const int error =
        launch_kernel(conv_wgrad_depthwise_nhwc_kernel<scalar_t, R, STRIDE>,
                      config_for(plan.blocks, block, plan.shared_bytes, call.stream), plan.g,
                      static_cast<const scalar_t*>(x), static_cast<const scalar_t*>(y),
                      static_cast<float*>(call.workspace));
    return error != 0 ? error : launch_wgrad_sum<dtype>(call, plan.splits);
  } else {
    constexpr bool dgrad = direction == Direction::kDgrad;
    constexpr bool gathered = dgrad && STRIDE == 2;
    constexpr int tile =
        gathered ? DgradTaps<R, 4>::kTile : FpropWindow<scalar_t, R, STRIDE>::Taps::kTile;
    WindowPlan plan = plan_window(p, dgrad, R, STRIDE, tile, vector, call.device);
    plan.g.out_pitch = static_cast<int>(dgrad ? p.C : call.y_channels());
    const dim3 block(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(plan.slots));
    const LaunchConfig config = config_for(plan.blocks, block, plan.shared_bytes, call.stream);
    if constexpr (gathered)
      return launch_kernel(conv_dgrad_depthwise_nhwc_kernel<scalar_t, R>, config, plan.g,
                           static_cast<const scalar_t*>(y), w, x);
    else
      return launch_either<!dgrad>(
          call, spatial_blocks(plan), [&](auto stats, const MomentTiles<float>& moments) {
            return launch_kernel(
                conv_fprop_depthwise_nhwc_kernel<scalar_t, R, STRIDE, decltype(stats)::value>,
                config, plan.g, static_cast<const scalar_t*>(dgrad ? y : x), w,
                dgrad ? static_cast<const scalar_t*>(nullptr) : bias,
                dgrad ? StoreEpilogue<float>{} : store_epilogue<float>(call.epilogue), moments,
                dgrad ? x : y);
          });
  }
}

#define FC_WINDOW(dtype, r, stride)                                                             \
  template int launch_window<dtype, Direction::kFprop, r, stride>(const ConvCall&);             \
  template int launch_window<dtype, Direction::kDgrad, r, stride>(const ConvCall&);             \
  template int launch_window<dtype, Direction::kWgrad, r, stride>(const ConvCall&);             \
  template int64_t window_wgrad_workspace<dtype, r, stride>(const ConvProblem&, const Device&); \
  template int64_t window_stats_workspace<dtype, r, stride>(const ConvProblem&, const Device&);
#define FC_WINDOWS(dtype) \
  FC_WINDOW(dtype, 3, 1)  \
  FC_WINDOW(dtype, 3, 2)  \
  FC_WINDOW(dtype, 5, 1) FC_WINDOW(dtype, 5, 2) FC_WINDOW(dtype, 7, 1) FC_WINDOW(dtype, 7, 2)
FC_WINDOWS(DType::kFloat32)
FC_WINDOWS(DType::kBFloat16)
FC_WINDOWS(DType::kFloat16)

}  // namespace fastconv::cuda::depthwise
