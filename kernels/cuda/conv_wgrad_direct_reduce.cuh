// Second stage of the direct weight gradients: dw[i] = sum over slices of partial[slice][i].
//
// Mapping   a block takes 32 weights and kReduceGroups runs of slices: a warp adds one run, in
//           order, for 32 neighbouring weights; then the first warp adds the runs, in order.
// Layouts   partial [slices][weights] in acc_t, dw in the weights' own order. All dtypes.
// Cost      slices * |dw| * sizeof(acc_t) bytes read (most of them in L2) and |dw| written: bound
//           by memory, or by the latency of slices / kReduceGroups loads where dw is small. Not
//           measured on a GPU.
// Determinism   a fixed order that depends on the number of slices only.
#pragma once
#include <cstdint>

#include "detail/scalar.cuh"

namespace fastconv::cuda {

constexpr int kReduceGroups = 8;
constexpr int kReduceThreads = 32 * kReduceGroups;

template <class scalar_t>
__global__ void __launch_bounds__(kReduceThreads, 4)
    conv_wgrad_direct_reduce_kernel(const acc_t<scalar_t>* __restrict__ partial,
                                    scalar_t* __restrict__ dw, int64_t weights, int64_t slices) {
  using acc = acc_t<scalar_t>;
  FC_SHARED(acc, runs, [kReduceGroups][32]);
  const int lane = static_cast<int>(threadIdx.x) % 32, run = static_cast<int>(threadIdx.x) / 32;
  const int64_t per_run = (slices + kReduceGroups - 1) / kReduceGroups;
  const int64_t begin = run * per_run, end = min(slices, begin + per_run);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * 32; first < weights;
       first += static_cast<int64_t>(gridDim.x) * 32) {
    const int64_t i = first + lane;
    acc sum = 0;
    if (i < weights) {
#pragma unroll 4
      for (int64_t slice = begin; slice < end; ++slice) sum += partial[slice * weights + i];
    }
    runs[run][lane] = sum;
    __syncthreads();
    if (run == 0 && i < weights) {
      sum = runs[0][lane];
      for (int other = 1; other < kReduceGroups; ++other) sum += runs[other][lane];
      dw[i] = from_acc<scalar_t>(sum);
    }
    __syncthreads();
  }
}

}  // namespace fastconv::cuda
