// What conv_tma.cu's table needs of the dgrad of strides above 1 by TMA and wgmma
// (conv_tma_strided.cu; for fp32 conv_tma_strided_tf32.cu), and these of each other.
#pragma once
#include "conv_im2col.h"
#include "conv_tma_tf32.h"

namespace fastconv::cuda {

std::string tma_strided_refusal(const TmaShape&, const ConvProblem&);
double tma_strided_cost(const TmaShape&, const ConvProblem&, const Device&);

struct ConvDgradStridedTmaParams;
// Returns the cudaError_t.
int tma_strided_params(const TmaShape&, const ConvCall&, ConvDgradStridedTmaParams*);
// dx is stored by vectors, too.
inline bool tma_strided_aligned(const TmaShape& s, const ConvCall& call) {
  return tma_aligned(s, call) && reinterpret_cast<uintptr_t>(call.x) % 16 == 0;
}

template <class Config>
int launch_conv_tma_strided(const ConvCall& call);
template <class Config>
int launch_conv_tma_strided_tf32(const ConvCall& call);

// `call` as the kernel shall see it, its operands aligned for TMA.
template <class Config, class Params>
int launch_conv_tma_strided_kernel(void (*kernel)(Params), const ConvCall& call) {
  using Tile = typename Config::Tile;
  Params p;
  if (const int error = tma_strided_params(Config::shape, call, &p)) return error;
  const int blocks = p.items < call.device.sm_count ? p.items : call.device.sm_count;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            Tile::SHARED_BYTES, call.stream};
  return launch_kernel(kernel, config, p);
}

template <DType dtype, class scalar_t, int M, int N, int STAGES>
using TmaStridedConfig =
    TmaConfig<Direction::kDgrad, dtype, WgmmaTile<scalar_t, M, N, STAGES>,
              Im2colNhwcVec<Direction::kDgrad, Mma128<scalar_t>, Mma64<scalar_t>, 8>>;

// X(name, dtype, scalar type, BLOCK_M, BLOCK_N, NUM_STAGES): the table and the explicit
// instantiations are both made of this list.
#define FC_TMA_STRIDED_TILES(X, dtype, name, scalar_t)                            \
  X("dgrad_" name "_nhwc_wgmma_strided_128x128x64", dtype, scalar_t, 128, 128, 5) \
  X("dgrad_" name "_nhwc_wgmma_strided_256x128x64", dtype, scalar_t, 256, 128, 4) \
  X("dgrad_" name "_nhwc_wgmma_strided_128x64x64", dtype, scalar_t, 128, 64, 6)
#define FC_TMA_STRIDED_INSTANCES(X)                                \
  FC_TMA_STRIDED_TILES(X, DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_TMA_STRIDED_TILES(X, DType::kFloat16, "f16", __half)

// X(name, configuration)
#define FC_TMA_STRIDED_TF32(X)                                                               \
  X("dgrad_tf32_nhwc_wgmma_strided_128x128x32", TmaTf32<Direction::kDgrad, 128, 128, 5>)     \
  X("dgrad_tf32_nhwc_wgmma_strided_256x128x32", TmaTf32<Direction::kDgrad, 256, 128, 4>)     \
  X("dgrad_tf32x3_nhwc_wgmma_strided_128x128x32", TmaTf32x3<Direction::kDgrad, 128, 128, 4>) \
  X("dgrad_tf32x3_nhwc_wgmma_strided_128x64x32", TmaTf32x3<Direction::kDgrad, 128, 64, 6>)

}  // namespace fastconv::cuda
