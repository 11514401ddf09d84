// probe: y[i] = x[i] + 1 over int32, 0 <= i < n.
//
// The smallest kernel that shows that this build runs on the present device: it fails with "no
// kernel image" where none of the built architectures covers it. Bytes: 8n, no reuse.
// Deterministic.
#pragma once
#include "detail/platform.cuh"

namespace fastconv::cuda {

constexpr int kProbeThreads = 256;

__global__ void __launch_bounds__(kProbeThreads)
    probe_kernel(const int32_t* __restrict__ x, int32_t* __restrict__ y, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kProbeThreads) + threadIdx.x;
  if (i < n) y[i] = x[i] + 1;
}

}  // namespace fastconv::cuda
