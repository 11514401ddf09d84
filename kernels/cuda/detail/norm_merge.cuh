// Mean and sum of squares about it, of parts that are merged without cancellation, and the sums of
// a block's threads in a fixed order. Source: Chan, Golub and LeVeque, "Updating Formulae and a
// Pairwise Algorithm for Computing Sample Variances", 1979.
#pragma once
#include "norm_arguments.cuh"

namespace fastconv::cuda {

__device__ __forceinline__ float norm_quotient(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double norm_quotient(double a, double b) { return a / b; }

// (count, mean, m2) += (other_count, other_mean, other_m2)
template <class A>
__device__ __forceinline__ void merge_moments(A& count, A& mean, A& m2, A other_count, A other_mean,
                                              A other_m2) {
  if (other_count == A(0)) return;
  if (count == A(0)) {
    count = other_count, mean = other_mean, m2 = other_m2;
    return;
  }
  const A total = count + other_count, delta = other_mean - mean;
  const A share = norm_quotient(other_count, total);
  mean += delta * share;
  m2 += other_m2 + delta * delta * (count * share);
  count = total;
}

// Moments of COUNT values, by their distances from the first: what they have in common cancels
// before anything is rounded.
template <class A, int COUNT>
__device__ __forceinline__ void moments_of(const A (&v)[COUNT], A& mean, A& m2) {
  A sum = 0, squares = 0;
#pragma unroll
  for (int i = 1; i < COUNT; ++i) {
    const A d = v[i] - v[0];
    sum += d;
    squares += d * d;
  }
  const A offset = sum * (A(1) / COUNT);
  mean = v[0] + offset;
  m2 = squares - sum * offset;
}

// What a thread has of VEC channels: (count, mean, m2) or two plain sums.
template <class A, int VEC>
struct NormPartial {
  A count;
  A first[VEC], second[VEC];
};

// Adds up what the threads of the same lane have; slot 0 has the result. shared: [2 VEC + 1]
// [kNormThreads].
template <bool MOMENTS, class A, int VEC>
__device__ __forceinline__ void merge_slots(NormPartial<A, VEC>& p, int lanes, A* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int half = kNormThreads / 2; half >= lanes; half /= 2) {
    if (thread >= half && thread < 2 * half) {
      if (MOMENTS) shared[2 * VEC * kNormThreads + thread] = p.count;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        shared[2 * i * kNormThreads + thread] = p.first[i];
        shared[(2 * i + 1) * kNormThreads + thread] = p.second[i];
      }
    }
    __syncthreads();
    if (thread < half) {
      const int from = thread + half;
      A count = p.count;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const A first = shared[2 * i * kNormThreads + from];
        const A second = shared[(2 * i + 1) * kNormThreads + from];
        if constexpr (MOMENTS) {
          count = p.count;
          merge_moments(count, p.first[i], p.second[i], shared[2 * VEC * kNormThreads + from],
                        first, second);
        } else {
          p.first[i] += first, p.second[i] += second;
        }
      }
      p.count = count;
    }
    __syncthreads();
  }
}

constexpr int kNormMergeThreads = 128;

// out [K] = the splits' parts of a channel, one warp each: lanes take them 32 apart, then halve.
template <bool MOMENTS, class A>
__global__ void __launch_bounds__(kNormMergeThreads, 8)
    norm_merge_kernel(const A* __restrict__ partial, int channels, int splits,
                      A* __restrict__ first, A* __restrict__ second) {
  constexpr int EACH = MOMENTS ? 3 : 2;
  const int k = static_cast<int>(blockIdx.x * (kNormMergeThreads / 32) + threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  if (k >= channels) return;
  A count = 0, a = 0, b = 0;
  for (int split = lane; split < splits; split += 32) {
    const A* const from = partial + (static_cast<int64_t>(k) * splits + split) * EACH;
    if constexpr (MOMENTS) {
      merge_moments(count, a, b, from[2], from[0], from[1]);
    } else {
      a += from[0], b += from[1];
    }
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    const A other_a = __shfl_down_sync(0xffffffffu, a, by);
    const A other_b = __shfl_down_sync(0xffffffffu, b, by);
    if constexpr (MOMENTS) {
      const A other_count = __shfl_down_sync(0xffffffffu, count, by);
      if (lane < by) merge_moments(count, a, b, other_count, other_a, other_b);
    } else if (lane < by) {
      a += other_a, b += other_b;
    }
  }
  if (lane == 0) first[k] = a, second[k] = b;
}

// Slot 0's thread writes its channels' parts.
template <bool MOMENTS, int VEC, class scalar_t>
__device__ __forceinline__ void store_partial(const NormArguments<scalar_t>& a,
                                              const NormPartial<acc_t<scalar_t>, VEC>& p, int k,
                                              int split) {
  constexpr int EACH = MOMENTS ? 3 : 2;
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    if (k + i >= a.K) break;
    acc_t<scalar_t>* const to = a.partial + (static_cast<int64_t>(k + i) * a.splits + split) * EACH;
    to[0] = p.first[i], to[1] = p.second[i];
    if (MOMENTS) to[2] = p.count;
  }
}

}  // namespace fastconv::cuda
