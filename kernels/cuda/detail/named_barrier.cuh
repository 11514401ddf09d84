// Barriers of a part of the block: groups of warps that work at their own pace (a producer and its
// consumers) meet without stopping the others. Ids 1 to 15 (0 is __syncthreads); `threads` counts
// all that sync or arrive, whole warps, and is the same in every call for one phase.
#pragma once
#include "platform.cuh"

namespace fastconv::cuda {

// Waits until `threads` threads have come.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
#if defined(FC_EMULATE)
  emu::named_barrier(id, threads, true, {__FILE__, __LINE__});
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// Counts as having come, and goes on.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#if defined(FC_EMULATE)
  emu::named_barrier(id, threads, false, {__FILE__, __LINE__});
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace fastconv::cuda
