// Launchers of im2col's dgrad.
#include "conv_dgrad_im2col.cuh"
#include "conv_im2col.h"

namespace fastconv::cuda {

template <class Config>
int launch_conv_im2col(const ConvCall& call) {
  using Tile = typename Config::Tile;
  if constexpr (!std::is_void_v<typename Config::Fallback>)
    if (!im2col_aligned(Config::shape, call))
      return launch_conv_im2col<typename Config::Fallback>(call);
  int64_t blocks;
  const ConvGatherParams p = im2col_gather_params(Config::shape, call, &blocks);
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            conv_gather_shared_bytes<Tile>(), call.stream};
  constexpr bool nhwc = Config::shape.layout == Layout::kNHWC;
  return launch_kernel(
      conv_dgrad_im2col_kernel<Tile, nhwc, Config::VEC_DATA, Config::VEC_OTHER, Config::TAP_TABLE>,
      config, p);
}

FC_IM2COL_INSTANCES(FC_IM2COL_INSTANTIATE, Direction::kDgrad, "dgrad")

}  // namespace fastconv::cuda
