// Launchers of tma's fprop for fp32 by one or three products of TF32.
#include "conv_tma_tf32.h"

#include "conv_fprop_tma_tf32x3.cuh"

namespace fastconv::cuda {
namespace {

// parts [2][K, taps, C].
int split_filter(const ConvCall& call) {
  const ConvProblem& c = call.problem;
  const int64_t count = c.K * c.C * c.filter_size();
  const int64_t blocks = (count + 4 * kSplitThreads - 1) / (4 * kSplitThreads);
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20)),
                            dim3(kSplitThreads), 0, call.stream};
  return launch_kernel(conv_filter_tf32x3_kernel, config, static_cast<const float*>(call.w),
                       static_cast<float*>(call.workspace), count);
}

}  // namespace

template <class Config>
int launch_conv_tma_tf32(const ConvCall& call) {
  if constexpr (Config::shape.products == Products::kTf32) {
    return launch_conv_tma<Config>(call);
  } else {
    using Tile = typename Config::Tile;
    if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
    if (!tma_aligned(Config::shape, call))
      return launch_conv_im2col<typename Config::Fallback>(call);
    int error = split_filter(call);
    if (error != cudaSuccess) return error;
    ConvCall parts = call;
    parts.w = call.workspace;
    ConvTmaParams p;
    error = tma_params(Config::shape, parts, &p);
    if (error != cudaSuccess) return error;
    const int blocks = p.tiles < call.device.sm_count ? p.tiles : call.device.sm_count;
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                              Tile::SHARED_BYTES, call.stream};
    return launch_with_moments(
        call, Config::shape.direction, moment_tiles<Tile>(call.problem),
        [&](const MomentTiles<float>& moments) {
          p.moments = moments;
          return launch_kernel(conv_fprop_tma_tf32x3_kernel<Tile>, config, p);
        },
        tma_parts_bytes(Config::shape, call.problem));
  }
}

#define FC_TMA_TF32_INSTANTIATE(name, ...) \
  template int launch_conv_tma_tf32<__VA_ARGS__>(const ConvCall&);
FC_TMA_TF32(FC_TMA_TF32_INSTANTIATE)

}  // namespace fastconv::cuda
