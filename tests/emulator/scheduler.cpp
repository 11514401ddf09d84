#include "scheduler.h"

#include <cstdio>
#include <cstring>

#include "worker.h"

namespace emu {

__thread Fiber* current = nullptr;

uint3 thread_index() { return current->thread; }
uint3 block_index() { return current->block->index; }
dim3 block_extent() { return current->block->extent; }
dim3 grid_extent() { return current->block->grid; }
unsigned lane_index() { return current->lane; }

std::string place(Site site) {
  const char* name = site.file;
  for (const char* p = site.file; *p; ++p)
    if (*p == '/') name = p + 1;
  return std::string(name) + ":" + std::to_string(site.line);
}

std::string coordinates(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

// --- errors -------------------------------------------------------------------------------------

void fail(const char* what) { fail(std::string(what)); }

void fail(const std::string& what) {
  Fiber& self = *current;
  record(*self.block, &self, what);
  Worker& worker = *self.block->worker;
  worker.abandoned = true;
  current = nullptr;
  switch_context(self.context, worker.home);
  __builtin_unreachable();
}

// --- waiting ------------------------------------------------------------------------------------

void wait_for(Wait what, Site site) {
  Fiber& self = *current;
  self.wait = what;
  self.site = site;
  Worker& worker = *self.block->worker;
  ++worker.switches;
  switch_context(self.context, worker.home);
}

void wake(Fiber& fiber) {
  fiber.wait = Wait::kNone;
  fiber.warp->ready |= 1u << fiber.lane;
  fiber.block->ready_warps |= 1u << (fiber.linear / kWarpSize);
}

uint32_t random_bits() { return current->block->worker->random(); }

// Everything in a warp collective is checked when a lane arrives: its own mask, and that the lanes
// that it names have not exited and, where they wait already, wait for the same.
void warp_collective(const char* name, uint32_t mask, void* argument, Exchange exchange,
                     Site site) {
  Fiber& self = *current;
  Warp& warp = *self.warp;
  const auto hex = [](uint32_t v) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", v);
    return std::string(text);
  };
  if (!(mask >> self.lane & 1u))
    fail(std::string(name) + " at " + place(site) + ": lane " + std::to_string(self.lane) +
         " is not in its own mask " + hex(mask));
  if (mask & warp.done)
    fail(std::string(name) + " at " + place(site) + ": mask " + hex(mask) + " names lanes " +
         hex(mask & warp.done) + " that have exited");
  // The default mask is full; in a block of 40 threads it means the 8 of the second warp.
  const uint32_t all = mask & warp.exists;
  self.collective = name;
  self.mask = mask;
  self.exchange = exchange;
  self.argument = argument;
  // A lane that waits in another collective may still come to this one, unless that one names us.
  bool complete = (all & ~warp.waiting) == 1u << self.lane;
  for (uint32_t rest = warp.waiting; rest != 0; rest &= rest - 1) {
    const Fiber& other = warp.lanes[__builtin_ctz(rest)];
    const bool same = other.mask == mask && other.exchange == exchange &&
                      (other.collective == name || std::strcmp(other.collective, name) == 0);
    if (!same && other.mask >> self.lane & 1u)
      fail(std::string(name) + " at " + place(site) + " with mask " + hex(mask) + ", but lane " +
           std::to_string(other.lane) + " waits in " + other.collective + " at " +
           place(other.site) + " with mask " + hex(other.mask));
    complete = complete && (same || !(all >> other.lane & 1u));
  }
  if (!complete) {
    warp.waiting |= 1u << self.lane;
    wait_for(Wait::kWarp, site);
    return;
  }
  warp.waiting &= ~all;
  exchange(warp.lanes, all);
  for (uint32_t rest = all & ~(1u << self.lane); rest != 0; rest &= rest - 1)
    wake(warp.lanes[__builtin_ctz(rest)]);
}

void release_barrier(Block& block) {
  BlockBarrier& barrier = block.barrier;
  barrier.result = barrier.votes;
  barrier.reached = barrier.arrived;
  barrier.arrived = barrier.votes = 0;
  ++block.epoch;
  for (unsigned i = 0; i < block.threads; ++i)
    if (block.fibers[i].wait == Wait::kBlockBarrier) wake(block.fibers[i]);
}

unsigned block_barrier(const char* kind, bool predicate, Site site, unsigned* arrived) {
  Block& block = *current->block;
  BlockBarrier& barrier = block.barrier;
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.site = site;
  } else if (barrier.site.line != site.line || barrier.kind != kind) {
    fail(std::string("divergent barrier: ") + kind + " at " + place(site) + ", while " +
         std::to_string(barrier.arrived) + " threads wait in " + barrier.kind + " at " +
         place(barrier.site));
  }
  barrier.votes += predicate;
  if (++barrier.arrived == block.live)
    release_barrier(block);
  else
    wait_for(Wait::kBlockBarrier, site);
  if (arrived != nullptr) *arrived = barrier.reached;
  return barrier.result;
}

void named_barrier(unsigned id, unsigned threads, bool wait, Site site) {
  Fiber& self = *current;
  Block& block = *self.block;
  if (id == 0 || id >= kNamedBarriers || threads == 0 || threads % kWarpSize != 0 ||
      threads > block.warp_count * kWarpSize)
    fail("named barrier " + std::to_string(id) + " for " + std::to_string(threads) +
         " threads at " + place(site) +
         ": ids are 1 to 15, threads a multiple of 32 up to the"
         " block's");
  NamedBarrier& barrier = block.named[id];
  if (barrier.arrived != 0 && barrier.expected != threads)
    fail("named barrier " + std::to_string(id) + " at " + place(site) + " for " +
         std::to_string(threads) + " threads, while others wait for " +
         std::to_string(barrier.expected));
  barrier.expected = threads;
  self.barrier = id;
  if (++barrier.arrived < threads) {
    if (wait) wait_for(Wait::kNamedBarrier, site);
    return;
  }
  barrier.arrived = 0;
  ++block.epoch;
  for (unsigned i = 0; i < block.threads; ++i) {
    Fiber& other = block.fibers[i];
    if (other.wait == Wait::kNamedBarrier && other.barrier == id) wake(other);
  }
}

// --- shuffles and votes ------------------------------------------------------------------------

void warp_barrier(uint32_t mask, Site site) {
  warp_collective(
      "__syncwarp", mask, nullptr, [](Fiber* lanes, uint32_t) { ++lanes[0].warp->syncs; }, site);
}

namespace {
// A lane's part in a shuffle: what it gives and then gets, and whose value it wants.
struct Shuffle {
  unsigned char value[8];
  unsigned source, bytes;
};

void exchange_values(Fiber* lanes, uint32_t all) {
  unsigned char given[kWarpSize][8];
  // A lane that takes no part has no value to give: NaN, or an index far outside.
  std::memset(given, 0xFF, sizeof given);
  for (uint32_t rest = all; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    std::memcpy(given[i], static_cast<Shuffle*>(lanes[i].argument)->value, 8);
  }
  for (uint32_t rest = all; rest != 0; rest &= rest - 1) {
    auto* lane = static_cast<Shuffle*>(lanes[__builtin_ctz(rest)].argument);
    std::memcpy(lane->value, given[lane->source], 8);
  }
}
}  // namespace

void warp_shuffle(const char* name, uint32_t mask, void* value, unsigned bytes, unsigned source,
                  Site site) {
  Shuffle mine{{}, source % kWarpSize, bytes};
  std::memcpy(mine.value, value, bytes);
  warp_collective(name, mask, &mine, exchange_values, site);
  std::memcpy(value, mine.value, bytes);
}

uint32_t warp_vote(const char* name, uint32_t mask, bool predicate, Site site) {
  uint32_t mine = predicate;
  warp_collective(
      name, mask, &mine,
      [](Fiber* lanes, uint32_t all) {
        uint32_t ballot = 0;
        for (unsigned i = 0; i < kWarpSize; ++i)
          if (all >> i & 1u) ballot |= *static_cast<uint32_t*>(lanes[i].argument) << i;
        for (unsigned i = 0; i < kWarpSize; ++i)
          if (all >> i & 1u) *static_cast<uint32_t*>(lanes[i].argument) = ballot;
      },
      site);
  return mine;
}

}  // namespace emu
