#include "probe.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace fastconv::cuda {

int launch_probe(const int32_t* x, int32_t* y, int64_t n, void* stream) {
  if (n == 0) return cudaSuccess;
  const int64_t blocks = (n + kProbeThreads - 1) / kProbeThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  probe_kernel<<<static_cast<unsigned>(blocks), kProbeThreads, 0,
                 static_cast<cudaStream_t>(stream)>>>(x, y, n);
  return cudaGetLastError();
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fastconv::cuda
