// What the cost models take a GPU to do, per capability: published figures, scaled to the SM count
// at hand, and of each one value for all kernels. Only ratios between candidates matter for the
// choice. Not measured on a GPU.
#pragma once
#include "conv_algorithm.h"

namespace fastconv::cuda {

struct DeviceRates {
  double bytes_per_s;      // DRAM
  double l2_bytes_per_s;   // from L2 to all SMs
  double fma_flops;        // fp32 on the FMA pipe
  double fp64_flops;       // without tensor cores
  double tensor_16_flops;  // bf16 / fp16 through mma.sync
  double tensor_tf32_flops;
  double warpgroup_16_flops;  // bf16 / fp16 through wgmma; sm_90 alone
  double launch_s;            // per kernel, back to back on one stream
};

inline DeviceRates device_rates(const Device& device) {
  // DRAM: five sixths of the H200's 4.8 TB/s on paper, four fifths of an A100's 1.9.
  // L2: its slices give 5120 bytes per clock (NVIDIA's A100 white paper), half of them across the
  // link between the chip's two parts. Published microbenchmarks read some 60% of that on sm_90
  // (1.7 GHz); of sm_80 (1.4 GHz) rather half.
  // Per SM: 128 FMA and 64 fp64 lanes (sm_80: 64 and 32). wgmma: 4096 FLOPs of 16-bit types per
  // clock; mma.sync reaches 63% of that on sm_90 (Luo et al., "Benchmarking and Dissecting the
  // Nvidia Hopper GPU Architecture", 2024, section on tensor cores), all of sm_80's 2048. TF32:
  // half of each. About 1.7 GHz under load, 1.6 where tensor cores are busy; sm_80 1.4 and 1.2.
  const double sms = device.sm_count;
  const double wgmma = sms * 6.5e12, mma = 0.63 * wgmma;
  if (device.capability >= 90)
    return {4.0e12, 5.5e12, sms * 128 * 2 * 1.7e9, sms * 64 * 2 * 1.7e9, mma, mma / 2, wgmma, 3e-6};
  return {1.5e12, 3.8e12, sms * 64 * 2 * 1.4e9, sms * 32 * 2 * 1.4e9, sms * 2.5e12, sms * 1.25e12,
          0,      3e-6};
}

constexpr double kWarpgroupFlops = 4096;  // of an SM's tensor cores, per clock
// Seconds of a clock of an SM whose tensor cores are busy with wgmma.
inline double warpgroup_cycle_s(const DeviceRates& rates, const Device& device) {
  return kWarpgroupFlops * device.sm_count / rates.warpgroup_16_flops;
}

// What the kernels by wgmma take beside the products. A block of them has an SM to itself.
constexpr double kWarpgroupShare = 0.85;    // of the tensor cores' rate, within the main loop
constexpr double kFirstBytes_s = 0.7e-6;    // from a load by TMA until its bytes can be read
constexpr double kClusterSync_s = 0.25e-6;  // a barrier of the cluster that all of a block wait at

// Clocks in which a warpgroup stores 128 bytes of its tile as accumulated, fp32, whatever they are
// in memory: some ten instructions for a row of 32 lanes, and as long again until what they wait
// for is there. Two warpgroups store side by side.
constexpr double kEpilogueClocks = 5;
inline double warpgroup_store_s(double accumulators, const DeviceRates& rates,
                                const Device& device) {
  return kEpilogueClocks * accumulators / 32 * warpgroup_cycle_s(rates, device);
}

// Of the rate of the FMA pipe and of mma.sync, what a full SM reaches in a main loop that copies
// its operands through shared memory.
constexpr double kFmaShare = 0.75, kMmaShare = 0.7;

}  // namespace fastconv::cuda
