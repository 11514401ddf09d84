// Tensor maps for TMA: encoded on the host, about a microsecond each, without the driver's library
// being linked: its two functions are asked for at run time.
#pragma once
#include "../common/conv_problem.h"
#include "detail/tma.cuh"

namespace fastconv::cuda {

// A dense or strided tensor, axes from the innermost outwards; axis 0 is dense.
struct TensorAxes {
  void* base;   // aligned to 16 bytes
  DType dtype;  // fp32 is rounded to TF32 on the way, unless `exact`
  int rank;
  uint64_t extent[5];
  uint64_t stride[5];  // bytes, multiples of 16; stride[0] is the element's size
  bool exact = false;
};

// Boxes of `box` elements, rows of 128 bytes, in the 128B swizzle. Both return the cudaError_t.
int encode_tile_map(TensorMap* map, const TensorAxes& axes, const uint32_t* box);

// Columns of `pixels` pixels with `channels` channels each, 128 bytes. Of each spatial axis, W
// first: the first and, from the far end, the last place of a pixel's first tap, and the step
// between pixels.
int encode_im2col_map(TensorMap* map, const TensorAxes& axes, const int* lower, const int* upper,
                      const uint32_t* step, uint32_t channels, uint32_t pixels);

}  // namespace fastconv::cuda
