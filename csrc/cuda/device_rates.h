// What the cost models take a GPU to do, per capability: published peaks, scaled to the SM count at
// hand. Only ratios between candidates matter for the choice. Not measured on a GPU.
#pragma once
#include "conv_algorithm.h"

namespace fastconv::cuda {

struct DeviceRates {
  double bytes_per_s;      // DRAM
  double fma_flops;        // fp32 on the FMA pipe
  double fp64_flops;       // without tensor cores
  double tensor_16_flops;  // bf16 / fp16 through mma.sync
  double tensor_tf32_flops;
  double warpgroup_16_flops;  // bf16 / fp16 through wgmma; sm_90 alone
  double launch_s;            // per kernel, back to back on one stream
};

inline DeviceRates device_rates(const Device& device) {
  // Per SM: 128 FMA and 64 fp64 lanes (sm_80: 64 and 32). wgmma: 4096 FLOPs of 16-bit types per
  // clock; mma.sync reaches 63% of that on sm_90 (Luo et al., "Benchmarking and Dissecting the
  // Nvidia Hopper GPU Architecture", 2024, section on tensor cores), all of sm_80's 2048. TF32:
  // half of each. About 1.7 GHz under load, 1.6 where tensor cores are busy; sm_80 1.4 and 1.2.
  const double sms = device.sm_count;
  const double wgmma = sms * 6.5e12, mma = 0.63 * wgmma;
  if (device.capability >= 90)
    return {4.0e12, sms * 128 * 2 * 1.7e9, sms * 64 * 2 * 1.7e9, mma, mma / 2, wgmma, 3e-6};
  return {1.5e12, sms * 64 * 2 * 1.4e9, sms * 32 * 2 * 1.4e9, sms * 2.5e12, sms * 1.25e12, 0, 3e-6};
}

}  // namespace fastconv::cuda
