#include "probe.cuh"

#include "launch.h"

namespace fastconv::cuda {

int launch_probe(const int32_t* x, int32_t* y, int64_t n, void* stream) {
  if (n == 0) return cudaSuccess;
  const int64_t blocks = (n + kProbeThreads - 1) / kProbeThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kProbeThreads), 0, stream};
  return launch_kernel(probe_kernel, config, x, y, n);
}

}  // namespace fastconv::cuda
