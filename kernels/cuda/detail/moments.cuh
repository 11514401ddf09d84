// Mean and sum of squares about it of some of a channel's values, in one pass: a convolution's part
// of batch normalisation's statistics.
//
//   d = value - (the first value)
//   mean = first + sum of d / n,    m2 = sum of d^2 - (sum of d)^2 / n        over n values
//
// What a channel's values have in common cancels in d before anything is rounded, and stays apart
// in what is stored, so that it cancels between tiles, too. Where the first value is the odd one,
// the last difference loses a factor n at the most.
#pragma once
#include "scalar.cuh"

namespace fastconv::cuda {

// Of a channel in a tile of pixels, with the number of them known from elsewhere; the mean is
// first + offset.
struct TileMoment {
  float first, offset, m2;
};

// The same of tiles that differ in their number of pixels.
template <class A>
struct alignas(4 * sizeof(A)) CountedMoment {
  A first, offset, m2, count;
};

__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double fused_multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// The sums of one channel, of one thread or of several.
template <class A>
struct MomentSums {
  A first, sum, squares;

  __device__ __forceinline__ void start(A first_value) {
    first = first_value;
    sum = squares = A(0);
  }
  __device__ __forceinline__ void add(A value, bool exists) {
    const A d = exists ? value - first : A(0);
    sum += d;
    squares = fused_multiply_add(d, d, squares);
  }
  __device__ __forceinline__ void add_lane(int mask) {
    sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    squares += __shfl_xor_sync(0xffffffffu, squares, mask);
  }
  __device__ __forceinline__ A offset(A inverse_count) const { return sum * inverse_count; }
  __device__ __forceinline__ A m2(A inverse_count) const {
    return squares - sum * offset(inverse_count);
  }
};

}  // namespace fastconv::cuda
