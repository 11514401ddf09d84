// cp.async mistakes.
#include "planted.h"

namespace planted {
using fastconv::cuda::cp_async;
using fastconv::cuda::cp_async_commit;
using fastconv::cuda::cp_async_wait;

enum class Bug {
  kNone,
  kDroppedWait,
  kWaitCount,
  kNoBarrierAfterWait,
  kNoBarrierBeforeIssue,
  kNoFinalWait,
};

// y = every 128 elements of x reversed, through a pipeline of two stages.
template <Bug kBug>
__global__ void pipeline(const float* x, float* y, int64_t n) {
  FC_SHARED(float, stages, [2][128]);
  const int64_t tiles = n / 128;
  const int me = static_cast<int>(threadIdx.x);
  const auto issue = [&](int64_t tile) {
    cp_async<4>(&stages[tile % 2][me], x + tile * 128 + me, tile < tiles);
    cp_async_commit();
  };
  issue(0);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    issue(tile + 1);
    if (kBug == Bug::kWaitCount)
      cp_async_wait<2>();
    else if (kBug != Bug::kDroppedWait)
      cp_async_wait<1>();
    if (kBug != Bug::kNoBarrierAfterWait) __syncthreads();
    y[tile * 128 + me] = stages[tile % 2][127 - me];
    if (kBug != Bug::kNoBarrierBeforeIssue) __syncthreads();
  }
  if (kBug != Bug::kNoFinalWait) cp_async_wait<0>();
}
template <Bug kBug>
void run_pipeline(bool bug, const Arguments& a) {
  run_twin(bug, pipeline<Bug::kNone>, pipeline<kBug>, 1, 128, static_cast<const float*>(a.x), a.y,
           a.n);
}

template <bool kBug>
__global__ void store_into_pending_copy(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  const int me = static_cast<int>(threadIdx.x);
  cp_async<4>(&tile[me], x + me, true);
  cp_async_commit();
  if (kBug) tile[me] = 0.f;
  cp_async_wait<0>();
  y[me] = tile[me];
}

// Four elements per copy, which x allows only where it is aligned so.
template <bool kBug>
__global__ void copy_source_misaligned(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  const int me = static_cast<int>(threadIdx.x);
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  for (int i = 0; i < 4; ++i)
    if (!kBug) cp_async<4>(&tile[4 * me + i], x + 4 * me + i, true);
  if (kBug) cp_async<16>(&tile[4 * me], x + 4 * me + (aligned ? 1 : 0), true);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) y[4 * me + i] = tile[4 * me + i];
}

template <bool kBug>
__global__ void copy_destination_misaligned(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [260]);
  const int me = static_cast<int>(threadIdx.x);
  const int at = kBug ? 2 * me + 1 : 2 * me;
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 8 == 0;
  cp_async<8>(&tile[at], x + (aligned ? 0 : 1), true);
  cp_async_commit();
  cp_async_wait<0>();
  y[me] = tile[at] - x[aligned ? 0 : 1] + x[me];
}

template <bool kBug>
__global__ void copy_outside_of_shared(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  const int me = static_cast<int>(threadIdx.x);
  cp_async<4>(&tile[0] + (kBug && me == 127 ? 128 : me), x + me, true);
  cp_async_commit();
  cp_async_wait<0>();
  y[me] = tile[me];
}

// The tail is not masked: the copy reads behind x.
template <bool kBug>
__global__ void copy_source_out_of_bounds(const float* x, float* y, int64_t n) {
  FC_SHARED(float, tile, [128]);
  const int me = static_cast<int>(threadIdx.x);
  cp_async<4>(&tile[me], x + me, kBug || me < n);
  cp_async_commit();
  cp_async_wait<0>();
  if (me < n) y[me] = tile[me];
}

static const Scenario kScenarios[] = {
    {"dropped_wait", run_pipeline<Bug::kDroppedWait>},
    {"wait_count_off_by_one", run_pipeline<Bug::kWaitCount>},
    {"no_barrier_after_wait", run_pipeline<Bug::kNoBarrierAfterWait>},
    {"copy_over_stage_in_use", run_pipeline<Bug::kNoBarrierBeforeIssue>},
    {"copy_never_waited_for", run_pipeline<Bug::kNoFinalWait>},
    FC_TWINS(store_into_pending_copy, 1, 128),
    FC_TWINS(copy_source_misaligned, 1, 32),
    FC_TWINS(copy_destination_misaligned, 1, 128),
    FC_TWINS(copy_outside_of_shared, 1, 128),
    FC_TWINS(copy_source_out_of_bounds, 1, 128),
};
extern const ScenarioList copies{kScenarios, std::size(kScenarios)};

}  // namespace planted
