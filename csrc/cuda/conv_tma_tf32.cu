// Launchers of tma's fprop and dgrad for fp32 by one or three products of TF32.
#include "conv_tma_tf32.h"

#include "conv_filter_tf32.cuh"
#include "conv_gather_tma_tf32x3.cuh"

namespace fastconv::cuda {

int launch_conv_filter_tf32(const TmaShape& s, const ConvCall& call) {
  const ConvProblem& c = call.problem;
  const auto* const w = static_cast<const float*>(call.w);
  auto* const to = static_cast<float*>(call.workspace);
  const int64_t room = int64_t{call.device.sm_count} * (2048 / kSplitThreads);
  const auto launch = [&](auto kernel, int64_t blocks, auto... args) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks < room ? blocks : room)),
                              dim3(kSplitThreads), 0, call.stream};
    return launch_kernel(kernel, config, args...);
  };
  const auto tiles = [](int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; };
  if (!s.turned()) {
    const int64_t count = c.K * c.C * c.filter_size();
    return launch(conv_filter_tf32x3_kernel, tiles(count, 4 * kSplitThreads), w, to, count);
  }
  const int64_t columns = tiles(c.C, kTurnTile), taps = c.filter_size();
  const int64_t all = columns * taps * tiles(c.K, kTurnTile);
  const ConvFilterTurn p{w,
                         to,
                         static_cast<int>(c.K),
                         static_cast<int>(c.C),
                         static_cast<int>(taps),
                         static_cast<int>(all),
                         FastDivmod(static_cast<uint32_t>(columns)),
                         FastDivmod(static_cast<uint32_t>(taps))};
  return s.w_parts() == 2 ? launch(conv_filter_turned_kernel<2>, all, p)
                          : launch(conv_filter_turned_kernel<1>, all, p);
}

template <class Config>
int launch_conv_tma_tf32(const ConvCall& call) {
  using Tile = typename Config::Tile;
  constexpr const TmaShape& shape = Config::shape;
  if constexpr (!shape.filter_prepared()) {
    return launch_conv_tma<Config>(call);
  } else {
    if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
    if (!tma_aligned(shape, call)) return launch_conv_im2col<typename Config::Fallback>(call);
    if (const int error = launch_conv_filter_tf32(shape, call)) return error;
    ConvCall prepared = call;
    prepared.w = call.workspace;
    const auto kernel = [] {
      if constexpr (!shape.dgrad())
        return conv_fprop_tma_tf32x3_kernel<Tile>;
      else if constexpr (shape.w_parts() == 2)
        return conv_dgrad_tma_tf32x3_kernel<Tile>;
      else
        return conv_dgrad_tma_kernel<Tile>;
    }();
    return launch_conv_tma_kernel<Config>(kernel, prepared);
  }
}

#define FC_TMA_TF32_INSTANTIATE(name, ...) \
  template int launch_conv_tma_tf32<__VA_ARGS__>(const ConvCall&);
FC_TMA_TF32(FC_TMA_TF32_INSTANTIATE)

}  // namespace fastconv::cuda
