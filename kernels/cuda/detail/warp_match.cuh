// Equal values among the lanes of a warp.
#pragma once
#include "platform.cuh"

namespace fastconv::cuda {

// Whether no higher lane of the warp has the same value. All 32 lanes call it.
__device__ __forceinline__ bool is_last_of_equal(int64_t value, int lane) {
#if defined(FC_EMULATE)
  bool last = true;
  for (int other = 1; other < 32; ++other) {
    const int64_t theirs = __shfl_sync(0xffffffffu, value, (lane + other) % 32);
    last &= lane + other >= 32 || theirs != value;
  }
  return last;
#else
  const unsigned equal = __match_any_sync(0xffffffffu, static_cast<unsigned long long>(value));
  return equal >> lane == 1;
#endif
}

}  // namespace fastconv::cuda
