// Mistakes between blocks that hand each other values through memory by flags.
#include "detail/release_flag.cuh"
#include "planted.h"

namespace planted {
using namespace fastconv::cuda;

enum class FlagBug {
  kNone,
  kNoWait,
  kNoSyncBeforeRelease,
  kNoSyncBehindWait,
  kWritesBehindRelease,
  kNotTakenBack,
  kWaitsForLater,
  kOtherFlag,
  kNoOrder,
  kOutside,
};

constexpr uint64_t kNumber = 0x1234567890ABCDEF;

// y = x, every 64 elements by the block behind the one that has left them in memory, the last ones
// by their own. left [n], flags [blocks].
template <FlagBug kBug>
__global__ void __launch_bounds__(64)
    through_memory(const float* x, float* y, float* left, uint64_t* flags) {
  const int me = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int last = static_cast<int>(gridDim.x) - 1;
  float* const mine = left + block * 64;
  if (block < last) {
    if (kBug != FlagBug::kWritesBehindRelease || me != 40) mine[me] = x[block * 64 + me];
    if (kBug != FlagBug::kNoSyncBeforeRelease) __syncthreads();
    if (me == 0) flag_release(flags + block + (kBug == FlagBug::kOutside ? 1024 : 0), kNumber);
    if (kBug == FlagBug::kWritesBehindRelease && me == 40) mine[me] = x[block * 64 + me];
  } else {
    y[block * 64 + me] = x[block * 64 + me];
    if (kBug == FlagBug::kWaitsForLater && me == 0) flag_release(flags + block, kNumber);
  }
  if (kBug == FlagBug::kWaitsForLater && block < last && me == 0) flag_wait(flags + last, kNumber);
  if (block == 0) return;
  if (me == 0 && kBug != FlagBug::kNoWait) {
    uint64_t* const flag = flags + (kBug == FlagBug::kOtherFlag && block == last ? 0 : block - 1);
    flag_wait(flag, kNumber);
    if (kBug != FlagBug::kNotTakenBack) *flag = 0;
  }
  if (kBug != FlagBug::kNoSyncBehindWait) __syncthreads();
  y[(block - 1) * 64 + me] = left[(block - 1) * 64 + me];
}

template <FlagBug kBug>
void run_flags(bool bug, const Arguments& a) {
  const auto kernel = bug ? through_memory<kBug> : through_memory<FlagBug::kNone>;
  const LaunchConfig config{dim3(static_cast<unsigned>(a.n / 64)), dim3(64), 0, nullptr};
  const float* const x = a.x;
  uint64_t* const flags = reinterpret_cast<uint64_t*>(a.workspace + a.n);
  if (bug && kBug == FlagBug::kNoOrder)
    launch_clusters(kernel, config, 1, x, a.y, a.workspace, flags);
  else
    launch_in_order(kernel, config, 1, x, a.y, a.workspace, flags);
}

static const Scenario kScenarios[] = {
    {"flag_no_wait", run_flags<FlagBug::kNoWait>},
    {"flag_no_sync_before_release", run_flags<FlagBug::kNoSyncBeforeRelease>},
    {"flag_no_sync_behind_wait", run_flags<FlagBug::kNoSyncBehindWait>},
    {"flag_written_behind_release", run_flags<FlagBug::kWritesBehindRelease>},
    {"flag_not_taken_back", run_flags<FlagBug::kNotTakenBack>},
    {"flag_of_a_later_block", run_flags<FlagBug::kWaitsForLater>},
    {"flag_of_another_block", run_flags<FlagBug::kOtherFlag>},
    {"flag_without_order", run_flags<FlagBug::kNoOrder>},
    {"flag_outside", run_flags<FlagBug::kOutside>},
};
extern const ScenarioList flags{kScenarios, std::size(kScenarios)};

}  // namespace planted
