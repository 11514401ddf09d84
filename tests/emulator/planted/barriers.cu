// Missing, divergent and stuck barriers; races within a block and between blocks.
#include "planted.h"

namespace planted {

// y = every 128 elements of x reversed.
template <bool kBug>
__global__ void missing_syncthreads(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  const int64_t start = blockIdx.x * int64_t(128);
  tile[threadIdx.x] = x[start + threadIdx.x];
  if (!kBug) __syncthreads();
  y[start + threadIdx.x] = tile[127 - threadIdx.x];
}

// The same, four tiles in turn through one buffer.
template <bool kBug>
__global__ void missing_barrier_before_reuse(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  for (int step = 0; step < 4; ++step) {
    const int64_t start = (blockIdx.x * int64_t(4) + step) * 128;
    tile[threadIdx.x] = x[start + threadIdx.x];
    __syncthreads();
    y[start + threadIdx.x] = tile[127 - threadIdx.x];
    if (!kBug) __syncthreads();
  }
}

// Two barriers where there should be one that all reach.
template <bool kBug>
__global__ void divergent_barrier(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (kBug && threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = tile[127 - threadIdx.x];
}

// Half a warp waits for the block, the other half for the warp.
template <bool kBug>
__global__ void deadlock(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (kBug && threadIdx.x < 16) __syncwarp();
  __syncthreads();
  y[threadIdx.x] = tile[127 - threadIdx.x];
}

// Every warp adds its sum to one counter.
template <bool kBug>
__global__ void race_of_two_warps(const float* x, float* y, int64_t) {
  FC_SHARED(int, total, [1]);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    const int mine = static_cast<int>(x[threadIdx.x]);
    if (kBug)
      total[0] += mine;
    else
      atomicAdd(total, mine);
  }
  __syncthreads();
  y[threadIdx.x] = static_cast<float>(total[0]);
}

// A block adds to what the block before it has written.
template <bool kBug>
__global__ void depends_on_other_block(const float* x, float* y, int64_t) {
  const int64_t i = blockIdx.x * int64_t(128) + threadIdx.x;
  const int64_t before = i - 128;
  y[i] = x[i];
  if (before >= 0) y[i] = x[i] + (kBug ? y[before] : x[before]);
}

// Blocks overlap by one element, which both write (with the same value).
template <bool kBug>
__global__ void two_blocks_write_one_element(const float* x, float* y, int64_t n) {
  const int64_t i = blockIdx.x * int64_t(kBug ? 127 : 128) + threadIdx.x;
  if (i < n) y[i] = x[i];
}

static const Scenario kScenarios[] = {
    FC_TWINS(missing_syncthreads, static_cast<unsigned>(a.n / 128), 128),
    FC_TWINS(missing_barrier_before_reuse, static_cast<unsigned>(a.n / 512), 128),
    FC_TWINS(divergent_barrier, 1, 128),
    FC_TWINS(deadlock, 1, 128),
    FC_TWINS(race_of_two_warps, 1, 128),
    FC_TWINS(depends_on_other_block, static_cast<unsigned>(a.n / 128), 128),
    FC_TWINS(two_blocks_write_one_element, static_cast<unsigned>(a.n / 128 + 1), 128),
};
extern const ScenarioList barriers{kScenarios, std::size(kScenarios)};

}  // namespace planted
