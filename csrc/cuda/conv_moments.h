// Launchers of convolutions whose blocks leave moments of y
// (kernels/cuda/detail/block_moments.cuh): room for them in the workspace, and their merging behind
// the convolution.
#pragma once
#include "conv_algorithm.h"
#include "detail/block_moments.cuh"
#include "norm_launch.h"

namespace fastconv::cuda {

template <class A = float>
constexpr int64_t moments_bytes(int64_t K, int64_t tiles) {
  return K * tiles * static_cast<int64_t>(sizeof(CountedMoment<A>));
}

// Where they begin, behind `bytes` of other scratch.
constexpr int64_t moments_begin(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// launch(moments), of a call that asks for statistics with room for `tiles` per channel behind
// `bytes` of other scratch, and then their merging.
template <class A = float, class Launch>
int launch_with_moments(const ConvCall& call, Direction direction, int64_t tiles,
                        const Launch& launch, int64_t bytes = 0) {
  MomentTiles<A> moments{};
  if (direction != Direction::kFprop || call.mean == nullptr) return launch(moments);
  void* const at = static_cast<char*>(call.workspace) + moments_begin(bytes);
  moments.to = static_cast<CountedMoment<A>*>(at);
  moments.tiles = tiles;
  const int error = launch(moments);
  if (error != 0) return error;
  const TileStats stats{at, call.problem.K, tiles, 0, 0, call.mean, call.m2, true, sizeof(A) == 8};
  return launch_merge_tiles(stats, call.stream);
}

}  // namespace fastconv::cuda
