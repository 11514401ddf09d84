// What the launchers of the convolutions by TMA and wgmma share: an instance's shape, limits, costs
// and arguments (conv_tma.cu).
#pragma once
#include <string>

#include "conv_algorithm.h"
#include "conv_gather_tma.cuh"
#include "conv_im2col.h"
#include "conv_moments.h"
#include "conv_tma_model.h"

namespace fastconv::cuda {

struct TmaShape {
  Direction direction;
  DType dtype;
  int scalar_bytes;
  int block_m, block_n, block_k;
  Products products;  // of fp32
  // Blocks of a cluster: two neighbours along gemm_n share src, two along gemm_m share w; each of
  // `split` such does a part of gemm_k.
  int pair_m = 1, pair_n = 1, split = 1;
  // Whether all clusters share the tiles that make no whole round (conv_tma_work.cuh).
  bool streams = false;

  // Of split operands each tile of w comes in two parts.
  constexpr int w_parts() const { return products == Products::kTf32x3 ? 2 : 1; }
  constexpr bool dgrad() const { return direction == Direction::kDgrad; }
  // Of dgrad, w is turned beforehand where wgmma takes nothing else: gemm_k is then innermost.
  constexpr bool turned() const { return dgrad() && products != Products::kIeee; }
  // w is read from the workspace, as a kernel before has left it there.
  constexpr bool filter_prepared() const { return turned() || w_parts() == 2; }
  // Of wgmma's rate for 16-bit types: TF32 has half of it.
  constexpr double rate() const {
    return products == Products::kIeee ? 1.0 : products == Products::kTf32 ? 1.0 / 2 : 1.0 / 6;
  }
  constexpr int cluster() const { return pair_m * pair_n * split; }
};

// How many clusters of so many blocks, one to an SM, run at a time.
int tma_room(const Device&, int cluster);

// How the tiles are shared where a shape streams.
struct TmaStream {
  int64_t clusters;       // of the launch
  int64_t k_tiles;        // of a tile
  int64_t whole, rest;    // tiles: those done in whole rounds, those that are shared
  int64_t share, longer;  // k_tiles of the rest to a cluster; so many clusters have one more
};
TmaStream tma_stream(const TmaShape&, const ConvProblem&, const Device&);

TmaFigures tma_figures(const TmaShape&, const ConvProblem&, const Device&);

std::string tma_refusal(const TmaShape&, const ConvProblem&);
double tma_cost(const TmaShape&, const ConvProblem&, const Device&);
// Of w as it is prepared; moments of y lie behind it.
inline int64_t tma_filter_bytes(const TmaShape& s, const ConvProblem& p) {
  return s.filter_prepared() ? int64_t{4} * s.w_parts() * p.K * p.C * p.filter_size() : 0;
}
// Seconds that the kernel takes which prepares it.
double tma_filter_cost(const TmaShape&, const ConvProblem&, const Device&);
// Whether TMA takes the bases of the operands that it reads.
bool tma_aligned(const TmaShape&, const ConvCall&);
// Returns the cudaError_t.
int tma_params(const TmaShape&, const ConvCall&, ConvTmaParams*);

// Fallback: the configuration of im2col that takes bases at any alignment.
template <Direction direction, DType dtype, class Tile_, class Fallback_,
          Products products = Products::kIeee, int pair_m = 1, int pair_n = 1, int split = 1,
          bool streams = false>
struct TmaConfig {
  using Tile = Tile_;
  using Fallback = Fallback_;
  static constexpr TmaShape shape{
      direction,     dtype,         static_cast<int>(sizeof(typename Tile::scalar_t)),
      Tile::BLOCK_M, Tile::BLOCK_N, Tile::BLOCK_K,
      products,      pair_m,        pair_n,
      split,         streams};
  // Half of w is whole rows, or where its channels are the rows' contents, whole columns of 64.
  static_assert(pair_m * pair_n <= 2 && (split == 1 || split == 2 || split == 4));
  static_assert(!streams || split == 1);
  static_assert(pair_m == 1 || !shape.dgrad() || shape.turned() || Tile::BLOCK_N % 128 == 0);
};

// Of fprop: tiles of pixels, each of which leaves moments of its channels.
template <class Tile>
int64_t moment_tiles(const ConvProblem& p) {
  return (p.N * p.out_size() + Tile::BLOCK_M - 1) / Tile::BLOCK_M;
}

// `call` as the kernel shall see it, its operands aligned for TMA.
template <class Config>
int launch_conv_tma_kernel(void (*kernel)(ConvTmaParams), const ConvCall& call) {
  using Tile = typename Config::Tile;
  ConvTmaParams p;
  if (const int error = tma_params(Config::shape, call, &p)) return error;
  const int64_t tiles = moment_tiles<Tile>(call.problem);
  constexpr int kCluster = Config::shape.cluster();
  const int room = tma_room(call.device, kCluster);
  const int blocks = (p.tiles < room ? p.tiles : room) * kCluster;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            Tile::SHARED_BYTES, call.stream};
  return launch_with_moments(
      call, Config::shape.direction, tiles,
      [&](const MomentTiles<float>& moments) {
        p.moments = moments;
        return kCluster == 1 ? launch_kernel(kernel, config, p)
                             : launch_clusters(kernel, config, kCluster, p);
      },
      tma_filter_bytes(Config::shape, call.problem));
}

template <class Config>
int launch_conv_tma(const ConvCall& call) {
  using Tile = typename Config::Tile;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!tma_aligned(Config::shape, call)) return launch_conv_im2col<typename Config::Fallback>(call);
  if constexpr (Config::shape.direction == Direction::kFprop)
    return launch_conv_tma_kernel<Config>(conv_fprop_tma_kernel<Tile>, call);
  else
    return launch_conv_tma_kernel<Config>(conv_dgrad_tma_kernel<Tile>, call);
}

}  // namespace fastconv::cuda
