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
  // Per SM: 128 FMA and 64 fp64 lanes (sm_80: 64 and 32); tensor rates through mma.sync, which
  // reaches about 60% of the warpgroup instructions' peak on sm_90. About 1.7 and 1.4 GHz under
  // load.
  const double sms = device.sm_count;
  if (device.capability >= 90)
    return {4.0e12,       sms * 128 * 2 * 1.7e9, sms * 64 * 2 * 1.7e9,
            sms * 2.6e12, sms * 1.3e12,          sms * 6.5e12,
            3e-6};
  return {1.5e12, sms * 64 * 2 * 1.4e9, sms * 32 * 2 * 1.4e9, sms * 2.5e12, sms * 1.25e12, 0, 3e-6};
}

}  // namespace fastconv::cuda
