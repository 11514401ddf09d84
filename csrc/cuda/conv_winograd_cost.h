// Estimated times of the Winograd kernels, from counts and published rates. Not measured on a GPU.
#pragma once
#include <cmath>

#include "conv_winograd.h"
#include "device_rates.h"

namespace fastconv::cuda::winograd {

// Instructions beside the multiply-adds that load, transform and store one tile of 4x4 or 6x6.
constexpr double transform_work(int tile_out) { return tile_out == 4 ? 350 : 100; }
// What 32 x 32 blocks reach of the FMA pipe, and of the tensor cores, where shared memory limits.
constexpr double kFmaShare = 0.7, kTensorShare = 0.3;

inline double images_bytes(const ConvProblem& p, int64_t scalar_bytes) {
  return (double(p.N) * p.C * p.in_size() + double(p.N) * p.K * p.out_size()) * scalar_bytes;
}

// Seconds of `blocks` blocks that take `steps` steps of 8 with `tiles` transformed tiles each.
inline double blocks_seconds(double blocks, double steps, double tiles, int tile_out,
                             bool tensor_cores, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const double lanes = rates.fma_flops / 2 / device.sm_count * kFmaShare;  // per second and SM
  const double multiply =
      tensor_cores ? rates.tensor_tf32_flops / 2 / device.sm_count * kTensorShare : lanes;
  const double products = points_of(tile_out) * double(kWinogradBlock) * kWinogradPoint;
  const double step = products / multiply + tiles * transform_work(tile_out) / lanes;
  const double epilogue = kWinogradBlock * kWinogradBlock * transform_work(tile_out) / lanes;
  // Blocks beside each other on an SM share its rate.
  return std::max(std::ceil(blocks / device.sm_count), 1.0) * (steps * step + epilogue);
}

inline double fused_cost(const ConvProblem& p, Direction direction, int64_t scalar_bytes,
                         int tile_out, bool tensor_cores, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const Plan plan = make_plan(p, direction, Layout::kNCHW, tile_out, scalar_bytes);
  const double images = images_bytes(p, scalar_bytes) / rates.bytes_per_s;
  if (direction == Direction::kWgrad) {
    const Splits s = splits_of(plan, tile_out);
    const double compute = blocks_seconds(double(s.slabs) * s.splits, s.steps_per_split,
                                          2 * kWinogradPoint, tile_out, tensor_cores, device);
    return 2 * rates.launch_s + std::max(compute, images) + 2.0 * s.bytes / rates.bytes_per_s;
  }
  const Slabs s = slabs_of(plan, tile_out);
  const double blocks = double(blocks_of(plan.tiles, kWinogradBlock)) * s.total;
  const double compute = blocks_seconds(blocks, blocks_of(plan.C, kWinogradDepth), kWinogradPoint,
                                        tile_out, tensor_cores, device);
  const double filters = 2.0 * s.total * s.bytes / rates.bytes_per_s;
  return 2 * std::ceil(double(s.total) / s.at_a_time) * rates.launch_s + filters +
         std::max(compute, images);
}

}  // namespace fastconv::cuda::winograd
