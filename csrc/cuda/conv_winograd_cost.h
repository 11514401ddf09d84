// Estimated times of the Winograd kernels, from counts and published rates. Not measured on a GPU.
#pragma once
#include <cmath>
#include <limits>

#include "conv_winograd.h"
#include "device_rates.h"

namespace fastconv::cuda::winograd {

// Instructions beside the multiply-adds that load, transform and store one tile of 4x4 or 6x6.
constexpr double transform_work(int tile_out) { return tile_out == 4 ? 350 : 100; }
// What 32 x 32 blocks reach of the FMA pipe, and of the tensor cores, where shared memory limits.
constexpr double kBlockFmaShare = 0.7, kBlockTensorShare = 0.3;

inline double images_bytes(const ConvProblem& p, int64_t scalar_bytes) {
  return (double(p.N) * p.C * p.in_size() + double(p.N) * p.K * p.out_size()) * scalar_bytes;
}

// Seconds of `blocks` blocks that take `steps` steps of 8 with `tiles` transformed tiles each.
inline double blocks_seconds(double blocks, double steps, double tiles, int tile_out,
                             bool tensor_cores, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const double lanes = rates.fma_flops / 2 / device.sm_count * kBlockFmaShare;  // per second and SM
  const double multiply =
      tensor_cores ? rates.tensor_tf32_flops / 2 / device.sm_count * kBlockTensorShare : lanes;
  const double products = points_of(tile_out) * double(kWinogradBlock) * kWinogradPoint;
  const double step = products / multiply + tiles * transform_work(tile_out) / lanes;
  const double epilogue = kWinogradBlock * kWinogradBlock * transform_work(tile_out) / lanes;
  // Blocks beside each other on an SM share its rate.
  return std::max(std::ceil(blocks / device.sm_count), 1.0) * (steps * step + epilogue);
}

// GPUs of these capabilities have 99 KB of shared memory to a block, where F(4x4) needs 144.
inline bool fits(int tile_out, const Device& device) {
  const bool small = device.capability == 86 || device.capability == 89 || device.capability >= 120;
  return tile_out != 4 || !small;
}

inline double fused_cost(const ConvProblem& p, Direction direction, int64_t scalar_bytes,
                         int tile_out, bool tensor_cores, const Device& device) {
  if (!fits(tile_out, device)) return std::numeric_limits<double>::infinity();
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

inline double nonfused_cost(const ConvProblem& p, Direction direction, int64_t scalar_bytes,
                            int tile_out, bool tensor_cores, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const Plan plan = make_plan(p, direction, Layout::kNCHW, tile_out, scalar_bytes);
  const Matrices s = matrices_of(plan, direction, tile_out);
  const bool wgrad = direction == Direction::kWgrad;
  // Every matrix is written once and read once.
  const double tiles = double(s.tiles) * s.chunks;
  double floats = 2.0 * s.count * tiles * (s.C + s.K);
  floats += wgrad ? 2.0 * s.m * s.chunks : 2.0 * s.u;
  const double memory = (floats * 4 + images_bytes(p, scalar_bytes)) / rates.bytes_per_s;
  // Blocks of 128 x 64, the sides as conv_winograd_nonfused.cu lays them. One alone on an SM has
  // too few warps to hide its latencies.
  const double rows = wgrad ? s.K : s.tiles, columns = wgrad ? s.C : s.K;
  const double depth = wgrad ? blocks_of(s.tiles, s.splits) : s.C;
  const double blocks =
      s.count * std::ceil(rows / 128) * std::ceil(columns / 64) * std::max<int64_t>(s.splits, 1);
  const double rate = (tensor_cores ? rates.tensor_tf32_flops * 0.5 : rates.fma_flops * kFmaShare);
  const double block = 2.0 * 128 * 64 * std::max(depth, 32.0) * device.sm_count / rate;
  const double products = std::max(std::ceil(blocks / device.sm_count), 1.5) * block;
  const double launches = s.chunks * (wgrad ? 4 : 3) + (wgrad ? 0 : 1);
  return launches * rates.launch_s + memory + products * s.chunks;
}

}  // namespace fastconv::cuda::winograd
