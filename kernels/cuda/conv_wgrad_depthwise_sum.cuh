// Second stage of every depthwise wgrad: dw[i] = sum over splits of partial[split][i].
//
// Mapping   one thread per element of dw, K * taps of them; neighbouring threads read neighbouring
//           elements of each split.
// Dtypes    partial fp32, dw f32, bf16, f16.
// Bytes     4 * splits * |dw| read once; a few MiB at most, from L2. Not measured on a GPU.
// Determinism   splits are added in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/scalar.cuh"

namespace fastconv::cuda {

constexpr int kDepthwiseSumThreads = 128;

// partial [splits][elements] -> dw [elements]
template <class scalar_t>
__global__ void __launch_bounds__(kDepthwiseSumThreads)
    conv_wgrad_depthwise_sum_kernel(const float* __restrict__ partial, scalar_t* __restrict__ dw,
                                    int64_t elements, int splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kDepthwiseSumThreads + threadIdx.x;
  if (i >= elements) return;
  float sum = 0.f;
#pragma unroll 4
  for (int split = 0; split < splits; ++split) sum += partial[split * elements + i];
  dw[i] = from_acc<scalar_t>(sum);
}

}  // namespace fastconv::cuda
