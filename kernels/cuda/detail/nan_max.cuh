// The larger of two values, NaN where either is one: as max_pool2d has it, in one instruction. Of
// zeros of either sign either may come back.
#pragma once
#include "scalar.cuh"

namespace fastconv::cuda {

__device__ __forceinline__ float max_or_nan(float a, float b) {
#if defined(FC_EMULATE)
  return b > a || b != b ? b : a;
#else
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#endif
}

// Of both halves of a word.
template <class scalar_t>
__device__ __forceinline__ uint32_t max_or_nan_pair(uint32_t a, uint32_t b) {
  static_assert(sizeof(scalar_t) == 2);
#if defined(FC_EMULATE)
  scalar_t x[2], y[2];
  memcpy(x, &a, 4);
  memcpy(y, &b, 4);
  for (int i = 0; i < 2; ++i) x[i] = from_acc<scalar_t>(max_or_nan(to_acc(x[i]), to_acc(y[i])));
  memcpy(&a, x, 4);
  return a;
#else
  uint32_t larger;
  if constexpr (std::is_same_v<scalar_t, __half>)
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  else
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
#endif
}

}  // namespace fastconv::cuda
