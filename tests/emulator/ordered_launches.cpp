// Launches whose clusters wait for others: by flags in global memory, which one of lower index
// releases. All that is assumed of a GPU is that clusters start in the order of their index. How
// many there is room for at a time is drawn from the seed, from one on, and so is who goes first:
// any of them, the youngest, which then waits as often as it can, or the oldest.
//
// One OS thread runs all fibers, so that a flag wakes them and a wait without end is seen as one:
// nothing can go on. Every launch is done twice, as the replay of a graph would, over what the
// first time has left in memory.
#include <algorithm>

#include "access_checks.h"
#include "flags_interface.h"
#include "guarded_buffers.h"
#include "memory_faults.h"
#include "worker.h"

namespace emu {

namespace {

void check_flag(const uint64_t* flag, const char* what, Site site) {
  const GuardedBuffer* const buffer = find_buffer(flag);
  const auto* const p = reinterpret_cast<const unsigned char*>(flag);
  const bool inside =
      buffer != nullptr && p >= buffer->data() && p + 8 <= buffer->data() + buffer->bytes();
  if (!inside || reinterpret_cast<uintptr_t>(flag) % 8 != 0)
    fail(std::string(what) + " at " + place(site) + ": " + describe_address(flag) +
         " is outside of its buffer or not aligned to 8 bytes");
  if (!current->block->launch->ordered)
    fail(std::string(what) + " at " + place(site) +
         " in a launch whose blocks start in no particular order");
}

void run_once(Launch& launch, const std::vector<Worker*>& leaders) {
  std::vector<Worker*> idle = leaders;
  std::vector<Worker*>& alive = launch.alive;
  uint64_t state = mix(launch.seed ^ launch.number);
  const uint64_t policy = state % 3;
  alive.clear();
  launch.flags.clear();
  for (Worker* leader : leaders) leader->gather(launch);
  for (uint64_t next = 0; (next < launch.limit && !launch.failed) || !alive.empty();) {
    while (next < launch.limit && !idle.empty() && !launch.failed) {
      alive.push_back(idle.back());
      idle.pop_back();
      alive.back()->begin_cluster(launch, next++);
    }
    const size_t count = alive.size();
    state = mix(state);
    const size_t first = policy == 0 ? state % count : policy == 1 ? count - 1 : 0;
    bool moved = false;
    for (size_t i = 0; i < count && !moved; ++i)
      moved = alive[policy == 1 ? first - i : (first + i) % count]->advance();
    if (!moved) record(alive[0]->block, nullptr, alive[0]->describe_stuck());
    if (launch.failed)
      for (Worker* leader : alive) leader->give_up();
    for (size_t i = 0; i < alive.size();) {
      Worker* const leader = alive[i];
      if (!leader->over()) {
        ++i;
        continue;
      }
      leader->end_cluster();
      alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(i));
      idle.push_back(leader);
    }
  }
  for (Worker* leader : leaders)
    for (Worker* member : leader->cluster.members) launch.switches += member->switches;
}

}  // namespace

void flag_release(uint64_t* flag, uint64_t value, Site site) {
  check_flag(flag, "st.release", site);
  Launch& launch = *current->block->launch;
  // Who waits for it would not have waited.
  if (*flag == value)
    fail("st.release at " + place(site) + ": " + describe_address(flag) +
         " has the value since before the launch, or was released twice");
  launch.flags[flag] = note_release(*current, flag, sizeof value);
  *flag = value;
  for (Worker* leader : launch.alive)
    for (Worker* member : leader->cluster.members)
      for (unsigned i = 0; i < member->block.threads; ++i) {
        Fiber& other = member->fibers[i];
        if (other.wait == Wait::kFlag && other.flag == flag) wake(other);
      }
}

void flag_wait(const uint64_t* flag, uint64_t value, Site site) {
  check_flag(flag, "ld.acquire", site);
  while (*flag != value) {
    current->flag = flag;
    wait_for(Wait::kFlag, site);
  }
  const auto& released = current->block->launch->flags;
  const auto found = released.find(flag);
  if (found == released.end())
    fail("ld.acquire at " + place(site) + ": " + describe_address(flag) +
         " has the value since before the launch");
  note_acquire(*current, found->second);
}

size_t run_in_order(Launch& launch, std::vector<std::unique_ptr<Worker>>& workers) {
  constexpr size_t kMost = 4;
  const size_t room =
      std::max<size_t>(1, std::min<uint64_t>(launch.limit, 1 + launch.seed % kMost));
  while (workers.size() < room) workers.push_back(std::make_unique<Worker>());
  if (launch.limit != 0 && launch.limit < launch.blocks) {
    Block any{};
    any.launch = &launch;
    record(any, nullptr, "a launch in order runs all of its blocks, or none");
    return room;
  }
  std::vector<Worker*> leaders;
  for (size_t i = 0; i < room; ++i) leaders.push_back(workers[i].get());
  const FaultScope faults(launch.seconds);
  for (int replay = 0; replay < 2 && !launch.failed; ++replay) {
    run_once(launch, leaders);
    // To the checks of accesses, the second time is another launch.
    launch.number += 128;
  }
  return room;
}

}  // namespace emu
