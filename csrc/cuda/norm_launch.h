// Launchers of the passes of batch normalisation with activation (NormCall). No PyTorch and no CUDA
// headers here.
#pragma once
#include "../common/norm_call.h"
#include "conv_algorithm.h"

namespace fastconv::cuda {

// Bytes of scratch, 256-byte aligned, for NormCall::workspace.
FC_API int64_t norm_workspace(NormPass, const NormCall&);

// Launches on the stream; returns the cudaError_t. y, dz, residual and the results are aligned to
// the element only.
FC_API int launch_norm(NormPass, const NormCall&, void* stream);

// What a convolution left of every tile of y's pixels: [K][tiles] of TileMoment, the tiles of
// `tile_pixels` each, but for the last; or of CountedMoment (kernels/cuda/detail/moments.cuh), of
// double where y is, and then tile_pixels and pixels say nothing. mean, m2: [K] of the same type.
struct TileStats {
  const void* partial;
  int64_t K, tiles, tile_pixels, pixels;
  void *mean, *m2;
  bool counted = false, wide = false;
};
int launch_merge_tiles(const TileStats&, void* stream);

}  // namespace fastconv::cuda
