// The few things that a kernel source says differently on a GPU and in the CPU emulation
// (tests/emulator): shared memory and the launch. Everything else is plain CUDA C++.
//
//   FC_SHARED(type, name, [extents])   a static shared array, e.g. FC_SHARED(float, tile, [8][33]);
//   FC_DYN_SHARED(type, name)          the block's dynamic shared memory, 128-byte aligned
//   launch_kernel(kernel, config, args...)   returns the cudaError_t, 0 when launched
//
// Instructions that CUDA C++ has no function for live in async_copy.cuh and mma.cuh.
#pragma once
#if defined(FC_EMULATE)
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define FC_SHARED(type, name, extents) __shared__ __align__(16) type name extents
#define FC_DYN_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char fc_dyn_shared[]; \
  type* name = reinterpret_cast<type*>(fc_dyn_shared)

namespace fastconv::cuda {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes;  // dynamic
  void* stream;
};

template <class... Params, class... Args>
int launch_kernel(void (*kernel)(Params...), const LaunchConfig& config, Args... args) {
  if (config.shared_bytes > 48 * 1024) {
    // Per function and device, and idempotent; it costs under a microsecond, so nothing remembers
    // for which devices it was done.
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(config.shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // the error is returned, not left behind for an unrelated call
      return error;
    }
  }
  cudaStream_t const stream = static_cast<cudaStream_t>(config.stream);
  // clang-format off
  kernel<<<config.grid, config.block, config.shared_bytes, stream>>>(args...);
  // clang-format on
  return cudaGetLastError();
}

}  // namespace fastconv::cuda
#endif
