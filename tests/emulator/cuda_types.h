// The plain data types of CUDA C++, with CUDA's alignments, and the error codes the launchers use.
// Written for the emulation, so that a machine without the CUDA toolkit can run the kernels.
#pragma once
#include <cstddef>
#include <cstdint>

// --- what the compiler of a .cu file knows ------------------------------------------------------

#define __global__
#define __device__
#define __host__
// Constant memory: one copy per translation unit, as under nvcc without relocatable device code.
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __grid_constant__
#define __builtin_assume(condition) static_cast<void>(0)
// So many no-ops in front of the kernel's entry: the launch counts them (launch_checks.cpp) and
// refuses larger blocks.
#if defined(__clang__)  // takes no value that depends on a template
#define FC_LAUNCH_BOUNDS(threads, ...)
#else
#define FC_LAUNCH_BOUNDS(threads, ...) \
  __attribute__((patchable_function_entry((threads) + 0, (threads) + 0)))
#endif
#define __launch_bounds__(...) FC_LAUNCH_BOUNDS(__VA_ARGS__, 0)

// --- vectors ------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define FC_VECTOR1(name, scalar) \
  struct name##1 { scalar x; };  \
  inline name##1 make_##name##1(scalar x) { return {x}; }

#define FC_VECTOR2(name, scalar)                               \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }

#define FC_VECTOR3(name, scalar)      \
  struct name##3 { scalar x, y, z; }; \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }

#define FC_VECTOR4(name, scalar)                                              \
  struct alignas(4 * sizeof(scalar) > 16 ? 16 : 4 * sizeof(scalar)) name##4 { \
    scalar x, y, z, w;                                                        \
  };                                                                          \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

#define FC_VECTORS(name, scalar) \
  FC_VECTOR1(name, scalar)       \
  FC_VECTOR2(name, scalar)       \
  FC_VECTOR4(name, scalar)

FC_VECTORS(char, signed char)
FC_VECTORS(uchar, unsigned char)
FC_VECTORS(short, short)
FC_VECTORS(ushort, unsigned short)
FC_VECTORS(int, int)
FC_VECTORS(uint, unsigned)
FC_VECTORS(longlong, long long)
FC_VECTORS(ulonglong, unsigned long long)
FC_VECTORS(float, float)
FC_VECTORS(double, double)
FC_VECTOR3(int, int)
FC_VECTOR3(float, float)

// --- the runtime's error codes, as far as launchers name them -----------------------------------

using cudaStream_t = void*;

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorNotSupported: return "operation not supported";
  }
  return "unrecognized error code";
}
