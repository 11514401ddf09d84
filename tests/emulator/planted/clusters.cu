// Mistakes between the blocks of a cluster: two that bring each row for both, half of it each, and
// two that read each other's shared memory.
#include "detail/cluster.cuh"
#include "detail/tma_multicast.cuh"
#include "planted.h"

namespace planted {
using namespace fastconv::cuda;

enum class ClusterBug {
  kNone,
  kNoStartSync,
  kNoEndSync,
  kOwnArrivalOnly,
  kOwnSlotOnly,
  kOwnHalfExpected,
  kWrongMask,
  kBeyondCluster,
};

// y = every 128 elements of x reversed; even rows by the first block, odd ones by the second.
template <ClusterBug kBug>
__global__ void __launch_bounds__(128)
    rows_for_both(const __grid_constant__ TensorMap x, float* y, int64_t n) {
  FC_DYN_SHARED(float, slots);  // [2][128]
  uint64_t* const full = reinterpret_cast<uint64_t*>(slots + 256);
  uint64_t* const empty = full + 2;
  const int me = static_cast<int>(threadIdx.x), rank = static_cast<int>(cluster_rank());
  const int rows = static_cast<int>(n / 128);
  constexpr bool kOwnOnly = kBug == ClusterBug::kOwnSlotOnly;
  if (me == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, kOwnOnly ? 128 : 256);
    }
    mbarrier_init_fence();
  }
  if (kBug == ClusterBug::kNoStartSync)
    __syncthreads();
  else
    cluster_sync();
  const auto load = [&](int row) {
    const int slot = row % 2;
    mbarrier_wait(empty + slot, row / 2 % 2 ^ 1);
    mbarrier_arrive_expect(full + slot, kBug == ClusterBug::kOwnHalfExpected ? 256 : 512);
    const unsigned mask = kBug == ClusterBug::kWrongMask       ? 1u << rank
                          : kBug == ClusterBug::kBeyondCluster ? 7u
                                                               : 3u;
    tma_multicast_tile(slots + slot * 128 + rank * 64, &x, full + slot, mask, rank * 64, row, 0);
  };
  if (me == 0) load(0);
  for (int row = 0; row < rows; ++row) {
    const int slot = row % 2;
    if (me == 0 && row + 1 < rows) load(row + 1);
    mbarrier_wait(full + slot, row / 2 % 2);
    if (row % 2 == rank) y[row * 128 + me] = slots[slot * 128 + 127 - me];
    mbarrier_arrive(empty + slot);
    if (!kOwnOnly && kBug != ClusterBug::kOwnArrivalOnly)
      mbarrier_arrive_cluster(empty + slot, rank ^ 1);
  }
  if (kBug != ClusterBug::kNoEndSync) cluster_sync();
}

template <ClusterBug kBug>
void run_rows(bool bug, const Arguments& a) {
  TensorMap map;
  const uint64_t extent[3] = {128, static_cast<uint64_t>(a.n / 128), 1};
  const uint64_t stride[3] = {4, 512, 512 * extent[1]};
  const uint32_t box[3] = {64, 1, 1};
  emu::encode_tile(&map, 4, false, 3, a.x, extent, stride, box, emu::Swizzle::kNone);
  launch_clusters(bug ? rows_for_both<kBug> : rows_for_both<ClusterBug::kNone>,
                  LaunchConfig{dim3(2), dim3(128), 4096, nullptr}, 2, map, a.y, a.n);
}

enum class PeerBug { kNone, kNoSyncBefore, kNoSyncBehind, kNoEndSync, kOutside };

// y = x, every 128 elements by the block that does not read them from x.
template <PeerBug kBug>
__global__ void __launch_bounds__(32) through_the_peer(const float* x, float* y, int64_t n) {
  FC_DYN_SHARED(float, row);  // [128]
  const int me = static_cast<int>(threadIdx.x), rank = static_cast<int>(cluster_rank());
  for (int i = 0; i < static_cast<int>(n / 256); ++i) {
    for (int k = 0; k < 4; ++k) row[me * 4 + k] = x[(2 * i + rank) * 128 + me * 4 + k];
    if (kBug != PeerBug::kNoSyncBefore) cluster_sync();
    const float4* const from = reinterpret_cast<const float4*>(row) + me;
    const float4 v = cluster_load(from - (kBug == PeerBug::kOutside ? 64 : 0), rank ^ 1);
    float* const to = y + (2 * i + (rank ^ 1)) * 128 + me * 4;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    const bool last = i + 1 == static_cast<int>(n / 256);
    if (last ? kBug != PeerBug::kNoEndSync : kBug != PeerBug::kNoSyncBehind) cluster_sync();
  }
}

template <PeerBug kBug>
void run_peers(bool bug, const Arguments& a) {
  launch_clusters(bug ? through_the_peer<kBug> : through_the_peer<PeerBug::kNone>,
                  LaunchConfig{dim3(2), dim3(32), 512, nullptr}, 2, static_cast<const float*>(a.x),
                  a.y, a.n);
}

__global__ void __launch_bounds__(32) nothing() {}
void run_odd_grid(bool bug, const Arguments& a) {
  run_peers<PeerBug::kNone>(false, a);
  if (bug) launch_clusters(nothing, LaunchConfig{dim3(3), dim3(32), 0, nullptr}, 2);
}

static const Scenario kScenarios[] = {
    {"cluster_no_start_sync", run_rows<ClusterBug::kNoStartSync>},
    {"cluster_no_end_sync", run_rows<ClusterBug::kNoEndSync>},
    {"cluster_own_arrival_only", run_rows<ClusterBug::kOwnArrivalOnly>},
    {"cluster_own_slot_only", run_rows<ClusterBug::kOwnSlotOnly>},
    {"cluster_own_half_expected", run_rows<ClusterBug::kOwnHalfExpected>},
    {"cluster_wrong_mask", run_rows<ClusterBug::kWrongMask>},
    {"cluster_beyond_its_size", run_rows<ClusterBug::kBeyondCluster>},
    {"peer_no_sync_before", run_peers<PeerBug::kNoSyncBefore>},
    {"peer_no_sync_behind", run_peers<PeerBug::kNoSyncBehind>},
    {"peer_no_end_sync", run_peers<PeerBug::kNoEndSync>},
    {"peer_outside", run_peers<PeerBug::kOutside>},
    {"cluster_odd_grid", run_odd_grid},
};
extern const ScenarioList clusters{kScenarios, std::size(kScenarios)};

}  // namespace planted
