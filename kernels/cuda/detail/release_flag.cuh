// Flags in global memory, by which a block hands others of the same launch what it has left there:
// released with a value when it is written, waited for before it is read.
//
// A thread's release speaks for whatever is ordered before it by barriers (of the warp, of the
// block), and a wait for whatever is ordered behind it; PTX's memory model chains the three.
//
// A block that waits holds its SM. So it waits only for blocks of lower index, and only for what
// those do without waiting; and blocks start in the order of their index, which GPUs do and CUDA
// does not promise: the one assumption by which such a launch ends wherever it runs, next to
// whatever else runs there. Where all of its blocks have room at a time, it ends without it.
#pragma once
#include "cluster.cuh"
#if defined(FC_EMULATE)
#include "flags_interface.h"
#endif

namespace fastconv::cuda {

__device__ __forceinline__ void flag_release(uint64_t* flag, uint64_t value) {
#if defined(FC_EMULATE)
  emu::flag_release(flag, value, {__FILE__, __LINE__});
#else
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)),
               "l"(value)
               : "memory");
#endif
}

// Until the flag has that value. No call in the loop, as in mbarrier_wait.
__device__ __forceinline__ void flag_wait(const uint64_t* flag, uint64_t value) {
#if defined(FC_EMULATE)
  emu::flag_wait(flag, value, {__FILE__, __LINE__});
#else
  uint64_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                 : "=l"(seen)
                 : "l"(__cvta_generic_to_global(flag))
                 : "memory");
  } while (seen != value);
#endif
}

// launch_clusters of a kernel whose blocks wait for others by flags.
template <class... Params, class... Args>
int launch_in_order(void (*kernel)(Params...), const LaunchConfig& config, unsigned cluster,
                    Args... args) {
#if defined(FC_EMULATE)
  return emulate_clusters(::emu::run_ordered_launch, kernel, config, cluster, args...);
#else
  return launch_clusters(kernel, config, cluster, args...);
#endif
}

}  // namespace fastconv::cuda
