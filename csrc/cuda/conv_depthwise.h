// What the launchers of the depthwise kernels (conv_depthwise*.cu) share. Which kernel runs what:
// NHWC and NCHW kernels of compile-time filter size ("window", "planes"), and one for everything.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "conv_algorithm.h"
#include "conv_moments.h"
#include "detail/platform.cuh"
#include "device_rates.h"
#include "dtype_scalar.h"

namespace fastconv::cuda::depthwise {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return std::max(low, std::min(value, high));
}
inline bool aligned_to_vector(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
// Channels of residual and slice lie as y's do: `vector` of them side by side, aligned.
inline bool epilogue_by_vectors(const ConvCall& call, int vector) {
  return aligned_to_vector(call.epilogue.residual) && call.y_channels() % vector == 0;
}
constexpr int64_t kMaxCount = INT32_MAX;  // of blocks, and of what FastDivmod divides

// Lanes of a block along the channels: a power of two that leaves at most an eighth of them idle
// where one does, the larger the better.
inline int channel_lanes(int64_t vectors, int most) {
  for (int lanes = most; lanes > 1; lanes /= 2)
    if (ceil_div(vectors, lanes) * lanes - vectors <= vectors / 8) return lanes;
  return 1;
}

inline LaunchConfig config_for(int64_t blocks, dim3 block, int64_t shared_bytes, void* stream) {
  return {dim3(static_cast<unsigned>(blocks)), block, static_cast<size_t>(shared_bytes), stream};
}

// launch(stats, moments): the kernel of fprop with statistics of y, which is one of its own, where
// they are asked for; stats is a std::bool_constant.
template <bool fprop, class Launch>
int launch_either(const ConvCall& call, int64_t tiles, const Launch& launch) {
  if constexpr (fprop)
    return launch_with_moments(call, Direction::kFprop, tiles,
                               [&](const MomentTiles<float>& moments) {
                                 return moments.to == nullptr ? launch(std::false_type(), moments)
                                                              : launch(std::true_type(), moments);
                               });
  else
    return launch(std::false_type(), MomentTiles<float>{});
}

// Empty, or the reason; what every depthwise kernel asks.
std::string refuse(const ConvProblem&);
// The same for kernels of R x R taps, rank 2, dilation 1, one filter per channel.
std::string refuse_window(const ConvProblem&, int r, int stride);
std::string refuse_channels(const ConvProblem&, int vector);

// Seconds: `bytes` of DRAM traffic beside x, w and y, `efficiency` of the FMA rate, `threads` that
// share the work.
double estimate(const ConvProblem&, const Device&, int64_t scalar_bytes, double bytes,
                double efficiency, double threads, int launches);

// NHWC, R x R taps.
template <DType dtype, Direction direction, int R, int STRIDE>
int launch_window(const ConvCall&);
template <DType dtype, int R, int STRIDE>
int64_t window_wgrad_workspace(const ConvProblem&, const Device&);
template <DType dtype, int R, int STRIDE>
int64_t window_stats_workspace(const ConvProblem&, const Device&);

// NCHW, R x R taps.
template <DType dtype, Direction direction, int R, int STRIDE>
int launch_planes(const ConvCall&);
template <DType dtype, int R, int STRIDE>
int64_t planes_wgrad_workspace(const ConvProblem&, const Device&);
template <DType dtype, int R, int STRIDE>
int64_t planes_stats_workspace(const ConvProblem&, const Device&);

// Every depthwise problem.
template <DType dtype, Direction direction, Layout layout>
int launch_any(const ConvCall&);
template <DType dtype, Layout layout>
int64_t any_wgrad_workspace(const ConvProblem&, const Device&);
template <DType dtype, Layout layout>
int64_t any_stats_workspace(const ConvProblem&, const Device&);

// dw [K * taps] = partial [splits][K * taps] added up.
template <DType dtype>
int launch_wgrad_sum(const ConvCall&, int64_t splits);

}  // namespace fastconv::cuda::depthwise
