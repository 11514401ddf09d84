// The second stage of every wgrad whose gemm_k is split: partial sums [splits, K, ...] in fp32 at
// the workspace's start to dw, added in ascending order (conv_im2col_wgrad.cu).
#pragma once
#include "conv_algorithm.h"

namespace fastconv::cuda {

// scalar_t: float, __half, __nv_bfloat16. Returns the cudaError_t.
template <class scalar_t>
int launch_wgrad_reduce(const ConvCall& call, int splits);

}  // namespace fastconv::cuda
