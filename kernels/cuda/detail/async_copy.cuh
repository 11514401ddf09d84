// cp.async: copies from global to shared memory that pass no registers and are waited for later.
// Per thread: issue, commit what was issued as a group, wait until at most N groups are left. After
// the wait a thread sees its own copies; others see them after a barrier that follows the wait.
#pragma once
#include "platform.cuh"

namespace fastconv::cuda {

// BYTES: 4, 8 or 16; both addresses are aligned to it. Writes zeros when !valid, and then never
// reads `global`, which may point anywhere.
template <int BYTES>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "the sizes that cp.async has");
#if defined(FC_EMULATE)
  emu::async_copy(shared, global, BYTES, valid);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? BYTES : 0;
  // .cg (past L1) exists for 16 bytes only; neighbouring blocks' reuse is L2's business.
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES),
                 "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES),
                 "r"(bytes)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if defined(FC_EMULATE)
  emu::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most N of this thread's committed groups are still in flight.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if defined(FC_EMULATE)
  emu::async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace fastconv::cuda
