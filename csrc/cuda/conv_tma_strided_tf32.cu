// Launchers of tma's dgrad of strides above 1 for fp32 by one or three products of TF32.
#include "conv_dgrad_strided_tma.cuh"
#include "conv_tma_strided.h"

namespace fastconv::cuda {

template <class Config>
int launch_conv_tma_strided_tf32(const ConvCall& call) {
  using Tile = typename Config::Tile;
  constexpr const TmaShape& shape = Config::shape;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!tma_strided_aligned(shape, call)) return launch_conv_im2col<typename Config::Fallback>(call);
  if (const int error = launch_conv_filter_tf32(shape, call)) return error;
  ConvCall prepared = call;
  prepared.w = call.workspace;
  if constexpr (shape.w_parts() == 2)
    return launch_conv_tma_strided_kernel<Config>(conv_dgrad_strided_tma_tf32x3_kernel<Tile>,
                                                  prepared);
  else
    return launch_conv_tma_strided_kernel<Config>(conv_dgrad_strided_tma_kernel<Tile>, prepared);
}

#define FC_TMA_STRIDED_TF32_INSTANTIATE(name, ...) \
  template int launch_conv_tma_strided_tf32<__VA_ARGS__>(const ConvCall&);
FC_TMA_STRIDED_TF32(FC_TMA_STRIDED_TF32_INSTANTIATE)

}  // namespace fastconv::cuda
