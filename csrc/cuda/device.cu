#include <atomic>

#include "detail/platform.cuh"
#include "launch.h"

namespace fastconv::cuda {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

#if defined(FC_EMULATE)
int describe_device(int, Device* device) {
  *device = {90, 132};
  return 0;
}
#else
int describe_device(int index, Device* device) {
  constexpr int kMost = 64;
  static std::atomic<uint64_t> known[kMost];  // capability above, SM count below; 0: not asked yet
  const bool remembered = index >= 0 && index < kMost;
  if (remembered) {
    const uint64_t facts = known[index].load(std::memory_order_relaxed);
    if (facts != 0) {
      *device = {static_cast<int>(facts >> 32), static_cast<int>(facts & 0xffffffff)};
      return cudaSuccess;
    }
  }
  int major = 0, minor = 0, sms = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, index);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  *device = {10 * major + minor, sms};
  if (remembered)
    known[index].store(
        static_cast<uint64_t>(device->capability) << 32 | static_cast<uint64_t>(device->sm_count),
        std::memory_order_relaxed);
  return cudaSuccess;
}
#endif

}  // namespace fastconv::cuda
