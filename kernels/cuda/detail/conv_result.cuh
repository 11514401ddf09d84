// Where a convolution's sums go as [pixels, channels], channels side by side in memory, and what is
// done to them on the way: the part of a kernel's arguments that is the same for all that store by
// rows of pixels. csrc/cuda/conv_result.h fills it.
#pragma once
#include "epilogue.cuh"

namespace fastconv::cuda {

struct ConvResult {
  void* base;
  const void* bias;               // [channels] or null
  StoreEpilogue<float> epilogue;  // its residual is dense [pixels, channels]
  int64_t pitch;                  // elements from pixel to pixel
  int pixels, channels;
  // Eight channels that start at a multiple of eight lie aligned to 16 bytes.
  bool vec8, residual_vec8;
  bool by_tma;  // base and pitch are multiples of 16 bytes
};

}  // namespace fastconv::cuda
