// What the launchers of both direct algorithms share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "conv_direct.h"
#include "conv_gather_direct_params.cuh"
#include "detail/scalar.cuh"
#include "device_rates.h"
#include "dtype_scalar.h"

namespace fastconv::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x, w and y once each.
inline double tensor_bytes(const ConvProblem& p, int64_t scalar_bytes) {
  const double x = double(p.N) * double(p.C) * double(p.in_size());
  const double w = double(p.K) * double(p.channels_per_group()) * double(p.filter_size());
  const double y = double(p.N) * double(p.K) * double(p.out_size());
  return (x + w + y) * double(scalar_bytes);
}

// Shared memory that lets four blocks run on an SM of either architecture; and what a lone block
// may take on every GPU from sm_80 on.
constexpr int64_t kStepBytes = 32 << 10, kSoftBytes = 40 << 10, kHardBytes = 96 << 10;

// Thread instructions, counted in the SASS, to stage one position and channel, and one weight.
constexpr double kStageInput = 6, kStageWeight = 18;

inline bool aligned_to(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// An SM needs about three blocks of 128 threads to keep its FMA pipe busy.
inline double filled_sms(int64_t threads, const Device& device) {
  return std::min(1.0, double(threads) / (device.sm_count * 384.0));
}

// dw = the sum of `slices` partial sums [slices][weights] in acc_t (conv_direct_wgrad.cu).
template <DType dtype>
int launch_wgrad_reduce(const void* partial, void* dw, int64_t weights, int64_t slices,
                        void* stream);

// Why 32-bit coordinates and offsets inside a tile would not do; empty when they do.
inline std::string direct_refusal(const ConvProblem& p, Direction direction) {
  constexpr int64_t kMax = int64_t{1} << 29, kMaxStride = int64_t{1} << 20;
  for (int i = 0; i < 3; ++i) {
    const int64_t reach = p.dilation[i] * (p.filter[i] - 1);
    const int64_t most = std::max({p.in[i] + 2 * p.padding[i], reach, p.dilation[i]});
    if (most > kMax)
      return "padded extent or dilated kernel of " + std::to_string(most) + " exceeds " +
             std::to_string(kMax);
    const int64_t max_stride = direction == Direction::kDgrad ? kMaxClasses : kMaxStride;
    if (p.stride[i] > max_stride)
      return "stride " + std::to_string(p.stride[i]) + " exceeds " + std::to_string(max_stride);
  }
  const double weights = double(p.K) * double(p.channels_per_group()) * double(p.filter_size());
  if (weights / double(p.groups) >= double(1 << 30) || p.C > kMax || p.K > kMax)
    return "weight of " + std::to_string(p.K) + " filters x " +
           std::to_string(p.channels_per_group()) + " channels x " +
           std::to_string(p.filter_size()) + " taps in " + std::to_string(p.groups) +
           " groups exceeds 2^30 elements per group";
  return {};
}

// Of DRAM's rate where it is the bound: halos are read again, and rows end within a sector.
constexpr double kStreamShare = 0.8;

inline double fma_rate(const DeviceRates& rates, int64_t acc_bytes) {
  return acc_bytes == 8 ? rates.fp64_flops : rates.fma_flops;
}

}  // namespace fastconv::cuda
