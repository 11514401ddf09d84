// What the launchers of the convolutions by TMA and wgmma share: an instance's shape, limits, costs
// and arguments (conv_tma.cu).
#pragma once
#include <string>

#include "conv_algorithm.h"
#include "conv_gather_tma.cuh"
#include "conv_im2col.h"

namespace fastconv::cuda {

struct TmaShape {
  Direction direction;
  DType dtype;
  int scalar_bytes;
  int block_m, block_n, block_k;
  Products products;  // of fp32

  // Of split operands each tile of w comes in two parts.
  int w_parts() const { return products == Products::kTf32x3 ? 2 : 1; }
  bool dgrad() const { return direction == Direction::kDgrad; }
};

std::string tma_refusal(const TmaShape&, const ConvProblem&);
double tma_cost(const TmaShape&, const ConvProblem&, const Device&);
// Whether TMA takes the bases of the operands that it reads.
bool tma_aligned(const TmaShape&, const ConvCall&);
// Returns the cudaError_t.
int tma_params(const TmaShape&, const ConvCall&, ConvTmaParams*);

// Fallback: the configuration of im2col that takes bases at any alignment.
template <Direction direction, DType dtype, class Tile_, class Fallback_,
          Products products = Products::kIeee>
struct TmaConfig {
  using Tile = Tile_;
  using Fallback = Fallback_;
  static constexpr TmaShape shape{
      direction,     dtype,         static_cast<int>(sizeof(typename Tile::scalar_t)),
      Tile::BLOCK_M, Tile::BLOCK_N, Tile::BLOCK_K,
      products};
};

template <class Config>
int launch_conv_tma(const ConvCall& call) {
  using Tile = typename Config::Tile;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!tma_aligned(Config::shape, call)) return launch_conv_im2col<typename Config::Fallback>(call);
  ConvTmaParams p;
  if (const int error = tma_params(Config::shape, call, &p)) return error;
  const int blocks = p.tiles < call.device.sm_count ? p.tiles : call.device.sm_count;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            Tile::SHARED_BYTES, call.stream};
  if constexpr (Config::shape.direction == Direction::kFprop)
    return launch_kernel(conv_fprop_tma_kernel<Tile>, config, p);
  else
    return launch_kernel(conv_dgrad_tma_kernel<Tile>, config, p);
}

}  // namespace fastconv::cuda
