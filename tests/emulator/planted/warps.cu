// Warp-level mistakes: masks, missing __syncwarp, lanes that are not there.
#include "planted.h"

namespace planted {

constexpr unsigned kAll = 0xFFFFFFFFu;

// y = every 32 elements of x rotated by one.
template <bool kBug>
__global__ void missing_syncwarp(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!kBug) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32];
}

// y = the sum of each 32 elements.
template <bool kBug>
__global__ void lane_not_in_mask(const float* x, float* y, int64_t) {
  float sum = x[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2)
    sum += __shfl_xor_sync(kBug ? 0x0000FFFFu : kAll, sum, lanes);
  y[threadIdx.x] = sum;
}

template <bool kBug>
__global__ void different_masks(const float* x, float* y, int64_t) {
  float sum = x[threadIdx.x];
  const unsigned mask = kBug && threadIdx.x % 2 == 0 ? 0x55555555u : kAll;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(mask, sum, lanes);
  y[threadIdx.x] = sum;
}

template <bool kBug>
__global__ void different_collectives(const float* x, float* y, int64_t) {
  float sum = x[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    if (kBug && threadIdx.x % 32 < 16)
      sum += __shfl_down_sync(kAll, sum, lanes);
    else
      sum += __shfl_xor_sync(kAll, sum, lanes);
  }
  y[threadIdx.x] = sum;
}

// The last quarter of the block has nothing to do, and leaves before the others add up.
template <bool kBug>
__global__ void exited_lane_in_mask(const float* x, float* y, int64_t) {
  const bool idle = threadIdx.x >= 88;  // in the middle of warp 2
  if (kBug && idle) return;
  float sum = idle ? 0.f : x[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
  if (!idle) y[threadIdx.x] = sum;
}

// Half the warp adds up 16 elements; one step too many asks a lane that takes no part.
template <bool kBug>
__global__ void shuffle_from_inactive_lane(const float* x, float* y, int64_t) {
  if (threadIdx.x % 32 >= 16) return;
  float sum = x[threadIdx.x];
  for (int lanes = kBug ? 16 : 8; lanes > 0; lanes /= 2)
    sum += __shfl_xor_sync(0x0000FFFFu, sum, lanes);
  y[threadIdx.x] = sum;
}

// __activemask says who happens to be active, not who should take part.
template <bool kBug>
__global__ void activemask_as_full_mask(const float* x, float* y, int64_t) {
  float sum = x[threadIdx.x];
  const unsigned mask = kBug ? __activemask() : kAll;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(mask, sum, lanes);
  y[threadIdx.x] = sum;
}

// Two warps exchange through shared memory while the other two do not take part.
template <bool kBug>
__global__ void named_barrier_thread_count(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [64]);
  if (threadIdx.x >= 64) {
    y[threadIdx.x] = x[threadIdx.x];
    return;
  }
  tile[threadIdx.x] = x[threadIdx.x];
  fastconv::cuda::named_barrier_sync(1, kBug ? 96 : 64);
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

// Warp 0 produces for warp 1 through a full and an empty barrier, twice; the others idle.
template <bool kBug>
__global__ void named_barrier_hand_over(const float* x, float* y, int64_t) {
  using namespace fastconv::cuda;
  FC_SHARED(float, tile, [32]);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int step = 0; step < 2; ++step) {
    if (warp == 0) {
      if (step > 0 && !kBug) named_barrier_sync(2, 64);  // empty
      tile[lane] = x[step * 32 + lane];
      named_barrier_arrive(1, 64);  // full
    } else if (warp == 1) {
      named_barrier_sync(1, 64);
      y[step * 32 + lane] = tile[31 - lane];
      if (step == 0 && !kBug) named_barrier_arrive(2, 64);
    }
  }
}

// The lanes of a warp hand their elements on through global memory.
template <bool kBug>
__global__ void global_read_before_syncwarp(const float* x, float* y, int64_t) {
  const unsigned lane = threadIdx.x % 32, next = threadIdx.x - lane + (lane + 1) % 32;
  y[threadIdx.x] = x[threadIdx.x];
  if (!kBug) __syncwarp();
  const float value = y[next];
  __syncwarp();
  y[threadIdx.x] = value;
}

template <bool kBug>
__global__ void global_write_before_syncwarp(const float* x, float* y, int64_t) {
  const unsigned lane = threadIdx.x % 32, next = threadIdx.x - lane + (lane + 1) % 32;
  y[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  const float value = y[next];
  if (!kBug) __syncwarp();
  y[threadIdx.x] = value;
}

// Ordered within each warp, but it is the next warp's element.
template <bool kBug>
__global__ void global_memory_of_another_warp(const float* x, float* y, int64_t) {
  y[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  const float value = y[kBug ? (threadIdx.x + 32) % 128 : threadIdx.x];
  y[threadIdx.x] = kBug ? value + 1 : value;
}

static const Scenario kScenarios[] = {
    FC_TWINS(missing_syncwarp, 1, 128),
    FC_TWINS(lane_not_in_mask, 1, 128),
    FC_TWINS(different_masks, 1, 128),
    FC_TWINS(different_collectives, 1, 128),
    FC_TWINS(exited_lane_in_mask, 1, 128),
    FC_TWINS(shuffle_from_inactive_lane, 1, 128),
    FC_TWINS(activemask_as_full_mask, 1, 128),
    FC_TWINS(named_barrier_thread_count, 1, 128),
    FC_TWINS(named_barrier_hand_over, 1, 128),
    FC_TWINS(global_read_before_syncwarp, 1, 128),
    FC_TWINS(global_write_before_syncwarp, 1, 128),
    FC_TWINS(global_memory_of_another_warp, 1, 128),
};
extern const ScenarioList warps{kScenarios, std::size(kScenarios)};

}  // namespace planted
