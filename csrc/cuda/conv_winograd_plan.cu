// Plans, workspaces and costs of the Winograd kernels: host arithmetic only.
#include <algorithm>
#include <string>

#include "conv_winograd.h"
#include "detail/winograd_block.cuh"
#include "device_rates.h"

namespace fastconv::cuda::winograd {
namespace {

std::string axis_pair(const int64_t (&a)[3]) {
  return std::to_string(a[1]) + "x" + std::to_string(a[2]);
}

WinogradImages images_of(int64_t channels, int64_t height, int64_t width, Layout layout) {
  const bool nhwc = layout == Layout::kNHWC;
  return {channels * height * width,
          nhwc ? 1 : height * width,
          static_cast<int32_t>(nhwc ? width * channels : width),
          static_cast<int32_t>(nhwc ? channels : 1),
          static_cast<int32_t>(height),
          static_cast<int32_t>(width)};
}

// Instructions beside the multiply-adds that transform one tile: loads, additions, stores.
constexpr double transform_work(int tile_out) { return tile_out == 4 ? 350 : 100; }
// Of the FMA pipe, and of the tensor cores' rate through mma.sync, which shared memory's bandwidth
// limits with 32 x 32 blocks. Estimates; not measured on a GPU.
constexpr double kFmaShare = 0.7, kTensorShare = 0.3;

}  // namespace

int64_t scalar_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

Plan make_plan(const ConvProblem& p, Direction direction, Layout layout, int tile_out) {
  Plan plan{};
  plan.groups = p.groups;
  plan.C = p.channels_per_group();
  plan.K = p.filters_per_group();
  plan.in = images_of(p.C, p.in[1], p.in[2], layout);
  plan.out = images_of(p.K, p.out[1], p.out[2], layout);
  plan.pad_h = p.padding[1];
  plan.pad_w = p.padding[2];
  const int64_t Cg = plan.C, taps = 9;
  const bool nhwc = layout == Layout::kNHWC;
  plan.filter_k = Cg * taps;
  plan.filter_g = plan.K * plan.filter_k;
  plan.filter_c = nhwc ? 1 : taps;
  plan.filter_s = nhwc ? Cg : 1;
  plan.filter_r = 3 * plan.filter_s;
  if (direction == Direction::kDgrad) {
    std::swap(plan.C, plan.K);
    std::swap(plan.in, plan.out);
    plan.pad_h = 2 - plan.pad_h;
    plan.pad_w = 2 - plan.pad_w;
    std::swap(plan.filter_c, plan.filter_k);
    plan.filter_begin = 2 * plan.filter_r + 2 * plan.filter_s;
    plan.filter_r = -plan.filter_r;
    plan.filter_s = -plan.filter_s;
  }
  plan.tiles_y = blocks_of(plan.out.height, tile_out);
  plan.tiles_x = blocks_of(plan.out.width, tile_out);
  plan.tiles = p.N * plan.tiles_y * plan.tiles_x;
  return plan;
}

WinogradTiling tiling_of(const Plan& plan) {
  return {static_cast<uint32_t>(plan.tiles), FastDivmod(static_cast<uint32_t>(plan.tiles_x)),
          FastDivmod(static_cast<uint32_t>(plan.tiles_y * plan.tiles_x))};
}

template <int kTileOut>
std::string applicable(const ConvProblem& p) {
  if (p.rank != 2) return "Winograd needs rank 2, got rank " + std::to_string(p.rank);
  if (p.filter[1] != 3 || p.filter[2] != 3)
    return "Winograd needs a 3x3 filter, got " + axis_pair(p.filter);
  if (p.stride[1] != 1 || p.stride[2] != 1)
    return "Winograd needs stride 1, got " + axis_pair(p.stride);
  if (p.dilation[1] != 1 || p.dilation[2] != 1)
    return "Winograd needs dilation 1, got " + axis_pair(p.dilation);
  // 32-bit arithmetic within a tile and in the numbers of tiles and channels.
  const int64_t limit = int64_t{1} << 31;
  const int64_t row = std::max(p.in[2] * p.C, p.out[2] * p.K);
  if (row > limit / 8)
    return "Winograd needs rows of at most 2^28 elements over all channels, got " +
           std::to_string(row);
  const int64_t height = std::max(p.in[1], p.out[1]);
  if (height > limit / 8 || p.padding[1] > limit / 8 || p.padding[2] > limit / 8)
    return "Winograd needs a height and padding of at most 2^28, got " + std::to_string(height) +
           " and " + axis_pair(p.padding);
  const int64_t tiles =
      p.N * std::max(blocks_of(p.out[1], kTileOut) * blocks_of(p.out[2], kTileOut),
                     blocks_of(p.in[1], kTileOut) * blocks_of(p.in[2], kTileOut));
  if (tiles > limit - 64)
    return "Winograd needs fewer than 2^31 - 64 tiles, got " + std::to_string(tiles);
  return "";
}
template std::string applicable<2>(const ConvProblem&);
template std::string applicable<4>(const ConvProblem&);

FusedSlabs fused_slabs(const Plan& plan, int tile_out) {
  const int64_t points = (tile_out + 2) * (tile_out + 2);
  FusedSlabs s{};
  s.per_group = blocks_of(plan.K, kWinogradBlock);
  s.total = s.per_group * plan.groups;
  s.bytes = blocks_of(plan.C, kWinogradDepth) * points * kWinogradPoint * 4;
  const int64_t most = std::min(kWorkspaceBytes / s.bytes,
                                INT32_MAX / blocks_of(plan.tiles, int64_t{kWinogradBlock}));
  s.at_a_time = std::clamp<int64_t>(most, 1, s.total);
  return s;
}

int64_t fused_workspace(const ConvProblem& p, Direction direction, int tile_out) {
  const FusedSlabs s = fused_slabs(make_plan(p, direction, Layout::kNCHW, tile_out), tile_out);
  return s.at_a_time * s.bytes;
}

double fused_cost(const ConvProblem& p, Direction direction, DType dtype, Layout layout,
                  int tile_out, bool tensor_cores, const Device& device) {
  const Plan plan = make_plan(p, direction, layout, tile_out);
  const FusedSlabs slabs = fused_slabs(plan, tile_out);
  const DeviceRates rates = device_rates(device);
  const double sms = device.sm_count, points = (tile_out + 2) * (tile_out + 2);
  const double fma = rates.fma_flops / 2 / sms;  // instructions of one lane per second and SM
  const double multiply =
      tensor_cores ? rates.tensor_tf32_flops / 2 / sms * kTensorShare : fma * kFmaShare;
  const double steps = blocks_of(plan.C, kWinogradDepth);
  const double block =
      steps * kWinogradPoint *
          (points * kWinogradBlock / multiply + transform_work(tile_out) / (fma * kFmaShare)) +
      kWinogradBlock * kWinogradBlock * transform_work(tile_out) / (fma * kFmaShare);
  // Blocks run one after the other on an SM; beside each other they share its rate.
  const double blocks = double(blocks_of(plan.tiles, kWinogradBlock)) * slabs.total;
  const double compute = std::max(std::ceil(blocks / sms), 1.0) * block;
  const double x = double(p.N) * p.C * p.in_size(), y = double(p.N) * p.K * p.out_size();
  const double u = double(slabs.total) * slabs.bytes;
  const double filter = u * 2 / rates.bytes_per_s;
  const double bytes = ((x + y) * scalar_bytes(dtype)) / rates.bytes_per_s;
  const double pieces = std::ceil(double(slabs.total) / slabs.at_a_time);
  return 2 * pieces * rates.launch_s + filter + std::max(compute, bytes);
}

}  // namespace fastconv::cuda::winograd
