// The launcher of the inception module, for the files that compile its kernels.
#pragma once
#include "inception.h"

namespace fastconv::cuda {

template <class Config>
int launch_inception(const InceptionCall& call, void* stream) {
  using Tile = typename Config::Tile;
  constexpr bool nhwc = Config::shape.layout == Layout::kNHWC;
  const InceptionGrids grids = inception_grids(Config::shape, call);
  LaunchConfig config{dim3(static_cast<unsigned>(grids.pointwise_blocks)),
                      dim3(Tile::BLOCK_THREADS), inception_shared_bytes<Tile>(), stream};
  const int error =
      launch_kernel(inception_fprop_pointwise_kernel<Tile, nhwc, Config::VEC_X, Config::VEC_W>,
                    config, grids.pointwise);
  if (error != 0) return error;
  config.grid = dim3(static_cast<unsigned>(grids.windows_blocks));
  return launch_kernel(inception_fprop_windows_kernel<Tile, nhwc, Config::VEC_X, Config::VEC_W>,
                       config, grids.windows);
}

}  // namespace fastconv::cuda
