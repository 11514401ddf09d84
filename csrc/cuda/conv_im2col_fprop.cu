// Launchers of im2col's fprop.
#include "conv_fprop_im2col.cuh"
#include "conv_im2col.h"
#include "norm_launch.h"

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
  const int error = launch_kernel(
      conv_fprop_im2col_kernel<Tile, nhwc, Config::VEC_DATA, Config::VEC_OTHER, Config::TAP_TABLE>,
      config, p);
  if (error != 0 || p.partial == nullptr) return error;
  constexpr int64_t tile_pixels = nhwc ? Tile::BLOCK_M : Tile::BLOCK_N;
  const TileStats moments{p.partial,
                          call.problem.K,
                          p.pixel_tiles.divisor,
                          tile_pixels,
                          call.problem.N * call.problem.out_size(),
                          call.mean,
                          call.m2};
  return launch_merge_tiles(moments, call.stream);
}

FC_IM2COL_INSTANCES(FC_IM2COL_INSTANTIATE, Direction::kFprop, "fprop")

}  // namespace fastconv::cuda
