// mbarrier (compute capability 9.0): barriers in shared memory that count arrivals of threads and
// bytes of asynchronous copies. A phase completes when both are there; the next one starts by
// itself. try_wait names a phase by its parity: the first is 0, and waiting for parity 1 on a fresh
// barrier passes at once, which is how a producer finds its ring empty.
//
//   mbarrier_init by one thread, mbarrier_init_fence by it, a barrier of the block, then use.
//
// Bodies exist for sm_90a and the emulation; in a build for another architecture a kernel has to
// guard its body with FC_SM90A.
#pragma once
#include "platform.cuh"
#if defined(FC_EMULATE)
#include "sm90_interface.h"
#endif

// Whether the code being compiled may use instructions of sm_90a.
#if defined(FC_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FC_SM90A 1
#endif

namespace fastconv::cuda {

#if !defined(FC_EMULATE)
__device__ __forceinline__ unsigned shared_u32(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned count) {
#if defined(FC_EMULATE)
  emu::mbarrier_init(barrier, count, {__FILE__, __LINE__});
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_u32(barrier)), "r"(count)
               : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_init_fence() {
#if defined(FC_EMULATE)
  emu::mbarrier_init_fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#if defined(FC_EMULATE)
  emu::mbarrier_arrive(barrier, 0, {__FILE__, __LINE__});
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_u32(barrier)) : "memory");
#endif
}

// Arrives, and makes the phase wait for `bytes` bytes of copies.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
#if defined(FC_EMULATE)
  emu::mbarrier_arrive(barrier, bytes, {__FILE__, __LINE__});
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_u32(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

// Until the phase of that parity has completed. No call and no print in the loop: ptxas would run
// the wgmma around it one by one.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
#if defined(FC_EMULATE)
  while (!emu::mbarrier_try_wait(barrier, parity, {__FILE__, __LINE__})) {
  }
#else
  unsigned done;
  do {
    asm volatile(
        "{\n"
        "  .reg .pred p;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_u32(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
#endif
}

}  // namespace fastconv::cuda
