#include "worker.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "memory_faults.h"

#if defined(FC_ASM_SWITCH)
asm(R"(
.text
.globl fc_emulator_switch
.hidden fc_emulator_switch
.type fc_emulator_switch, @function
fc_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fc_emulator_switch, .-fc_emulator_switch
)");
#endif

namespace emu {

namespace {
unsigned nth_from(uint32_t mask, unsigned start) {
  // The first set bit at or after `start`, cyclically.
  const uint32_t turned = start == 0 ? mask : mask >> start | mask << (32 - start);
  return (static_cast<unsigned>(__builtin_ctz(turned)) + start) & 31u;
}

void fiber_main() {
  entered_from(current->block->worker->home);
  for (;;) {  // once per block
    Fiber& self = *current;
    Launch& launch = *self.block->launch;
    launch.invoke(launch.arguments);
    self.block->worker->finish(self);
  }
}

}  // namespace

// --- a worker: one block after the other

Worker::Worker() : fibers(kMaxThreads), warps(kMaxThreads / kWarpSize) {
  // Stacks start at different offsets within a page: equal ones would all compete for the same few
  // cache lines.
  char* base = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackStride, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) throw std::bad_alloc();
  stacks = base;
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    Fiber& f = fibers[i];
    f.linear = i;
    f.lane = i % kWarpSize;
    f.warp = &warps[i / kWarpSize];
    f.block = &block;
  }
  for (unsigned i = 0; i < warps.size(); ++i) warps[i].lanes = &fibers[i * kWarpSize];
  block.fibers = fibers.data();
  block.warps = warps.data();
  block.worker = this;
  shadow.places.resize(SharedMemory::kSpan / 2 + 1);
}

void Worker::reset_fibers() {
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    const size_t colour = i % 16 * 192;
    prepare_context(fibers[i].context, stacks + i * kStackStride + kPage, kStackBytes - colour,
                    fiber_main);
    fibers[i].copies = CopyQueue();
  }
  fresh = true;
}

void Worker::finish(Fiber& self) {
  if (!self.copies.empty())
    fail("thread exits with " + std::to_string(self.copies.copies.size()) +
         " cp.async copies that nothing waited for");
  check_exit(self);
  Warp& warp = *self.warp;
  for (uint32_t rest = warp.exists & ~warp.done; rest != 0; rest &= rest - 1) {
    const Fiber& other = warp.lanes[__builtin_ctz(rest)];
    if (other.wait == Wait::kWarp && (other.mask >> self.lane & 1u))
      fail("thread exits, but lane " + std::to_string(other.lane) + " waits for it in " +
           other.collective + " at " + place(other.site));
  }
  warp.done |= 1u << self.lane;
  self.wait = Wait::kDone;
  --block.live;
  // Threads that have exited no longer count at a barrier (compute capability 7.0 and above).
  if (block.live != 0 && block.barrier.arrived == block.live) release_barrier(block);
  Cluster& in = *block.cluster;
  if (in.arrived != 0 && in.arrived == in.live()) release_cluster(in);
  ++switches;
  switch_context(self.context, home);
}

std::string Worker::describe_stuck() const {
  std::string text = "deadlock:";
  for (const Worker* member : cluster.members) {
    if (cluster.members.size() > 1)
      text += " block " + std::to_string(member->block.rank) + " of the cluster:";
    text += member->describe_waits();
  }
  return text;
}

std::string Worker::describe_waits() const {
  std::string text;
  for (unsigned i = 0, shown = 0; i < block.threads && shown < 4; ++i) {
    const Fiber& f = block.fibers[i];
    if (f.wait == Wait::kDone) continue;
    const auto same = [&](const Fiber& g) {
      return g.wait == f.wait && g.site.line == f.site.line && g.site.file == f.site.file;
    };
    unsigned count = 0;
    bool first = true;
    for (unsigned j = 0; j < block.threads; ++j) {
      if (!same(block.fibers[j])) continue;
      if (j < i) first = false;
      ++count;
    }
    if (!first) continue;
    ++shown;
    const char* what = f.wait == Wait::kWarp             ? f.collective
                       : f.wait == Wait::kBlockBarrier   ? block.barrier.kind
                       : f.wait == Wait::kMbarrier       ? "mbarrier.try_wait"
                       : f.wait == Wait::kClusterBarrier ? "barrier.cluster"
                       : f.wait == Wait::kFlag           ? "ld.acquire of a flag"
                                                         : "named barrier";
    text += " " + std::to_string(count) + " threads wait in " + what + " at " + place(f.site) +
            " (first: thread " + coordinates(f.thread) + ")";
    if (f.wait == Wait::kMbarrier)
      text += " for parity " + std::to_string(f.parity) + describe_mbarrier(*this, f.mbarrier);
    text += ";";
  }
  const unsigned exited = block.threads - block.live;
  text += " " + std::to_string(exited) + " of " + std::to_string(block.threads) + " have exited";
  return text;
}

void Worker::begin_block(const Launch& launch, Cluster& in, unsigned rank, uint64_t linear) {
  if (!fresh) reset_fibers();
  random_state = mix(launch.seed ^ mix(linear));
  const uint64_t plane = static_cast<uint64_t>(launch.grid.x) * launch.grid.y;
  block.index = {static_cast<unsigned>(linear % launch.grid.x),
                 static_cast<unsigned>(linear / launch.grid.x % launch.grid.y),
                 static_cast<unsigned>(linear / plane)};
  block.linear = linear;
  block.cluster = &in;
  block.rank = rank;
  block.epoch = block.cluster_epoch = 0;
  block.peer_read_low = block.peer_read_high = nullptr;
  block.touched = false;
  block.handed_over.clear();
  ++shadow.generation;
  block.live = block.threads;
  block.barrier = BlockBarrier();
  for (NamedBarrier& barrier : block.named) barrier = NamedBarrier();
  block.ready_warps = 0;
  for (unsigned w = 0; w < block.warp_count; ++w) {
    const unsigned lanes = std::min(block.threads - w * kWarpSize, kWarpSize);
    warps[w].exists = warps[w].ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps[w].done = warps[w].waiting = 0;
    warps[w].syncs = 0;
    block.ready_warps |= 1u << w;
  }
  for (unsigned i = 0; i < block.threads; ++i) {
    fibers[i].wait = Wait::kNone;
    fibers[i].proxy_fence = 0;
  }
  shared.open(launch.dynamic_bytes);
  sm90.reset(random_state);
  // Two ways to order warps: at random, or by a random priority, which lets one warp run far ahead
  // of the others and so finds missing waits that an even progress hides.
  by_priority = random() & 1u;
  favourite = random() % 32;
  lands_early = (mix(random_state) & 1u) != 0;
}

void Worker::step() {
  const uint32_t draw = random();
  if (!by_priority || (draw & 0xFF00u) == 0) favourite = draw >> 27;
  Warp& warp = warps[nth_from(block.ready_warps, favourite)];
  Fiber& next = warp.lanes[nth_from(warp.ready, draw & 31u)];
  warp.ready &= ~(1u << next.lane);
  if (warp.ready == 0) block.ready_warps &= ~(1u << (next.linear / kWarpSize));
  current = &next;
  switch_context(home, next.context);
  current = nullptr;
  if (!abandoned && lands_early && sm90.lands_now()) sm90.land_one(block);
}

void Worker::end_block() {
  if (!abandoned && sm90.used) {
    const std::string left = sm90.leftovers();
    if (!left.empty()) record(block, nullptr, left);
  }
  // Nothing but a barrier of the cluster keeps a block from exiting.
  if (!abandoned && block.touched)
    record(block, nullptr, "its peers use its shared memory behind the cluster's last barrier");
  const std::string damage = shared.close();
  if (!abandoned && !damage.empty()) record(block, nullptr, damage);
  if (abandoned) fresh = false;
  abandoned = false;
}

void Worker::begin_cluster(Launch& launch, uint64_t number) {
  const auto size = static_cast<unsigned>(cluster.members.size());
  cluster.arrived = 0;
  for (unsigned rank = 0; rank < size; ++rank)
    cluster.members[rank]->begin_block(launch, cluster, rank, number * size + rank);
  turn = 0;
}

bool Worker::advance() {
  const auto size = static_cast<unsigned>(cluster.members.size());
  // As of warps: now and then another block comes first, or one runs as far as it can.
  if (size > 1 && (!by_priority || (random() & 63u) == 0)) turn = random() % size;
  for (unsigned i = 0; i < size; ++i) {
    Worker& member = *cluster.members[(turn + i) % size];
    if (member.block.ready_warps == 0) continue;
    member.step();
    if (member.abandoned) give_up();
    return true;
  }
  for (unsigned i = 0; i < size; ++i) {
    Worker& member = *cluster.members[(turn + i) % size];
    if (member.sm90.land_one(member.block)) return true;
  }
  return false;
}

void Worker::give_up() {
  for (Worker* member : cluster.members) member->abandoned = true;
}

void Worker::end_cluster() {
  for (Worker* member : cluster.members) member->end_block();
}

void Worker::run_cluster(Launch& launch, uint64_t number) {
  begin_cluster(launch, number);
  while (!over()) {
    if (advance()) continue;
    record(block, nullptr, describe_stuck());
    give_up();
  }
  end_cluster();
}

// Every stack in use has a page in front that cannot be touched. Those that no block has needed yet
// have none: each is a mapping, of which a process has some 65000, for all workers of all modules.
void Worker::guard_stacks(unsigned count) {
  for (; guarded < count; ++guarded)
    if (mprotect(stacks + guarded * kStackStride, kPage, PROT_NONE) != 0) {
      record(block, nullptr, "the system has no mapping left for a stack's guard page");
      return;
    }
}

void Worker::prepare(Launch& launch) {
  block.launch = &launch;
  block.extent = launch.extent;
  block.grid = launch.grid;
  block.threads = launch.extent.x * launch.extent.y * launch.extent.z;
  block.warp_count = (block.threads + kWarpSize - 1) / kWarpSize;
  guard_stacks(block.threads);
  for (unsigned i = 0; i < block.threads; ++i)
    fibers[i].thread = {i % launch.extent.x, i / launch.extent.x % launch.extent.y,
                        i / (launch.extent.x * launch.extent.y)};
  switches = 0;
  check_accesses = launch.check_accesses;
}

void Worker::gather(Launch& launch) {
  while (peers.size() + 1 < launch.cluster) peers.push_back(std::make_unique<Worker>());
  cluster.members = {this};
  for (unsigned rank = 1; rank < launch.cluster; ++rank)
    cluster.members.push_back(peers[rank - 1].get());
  for (Worker* member : cluster.members) member->prepare(launch);
}

void Worker::run(Launch& launch) {
  gather(launch);
  {
    const FaultScope faults(launch.seconds);
    while (!launch.failed) {
      const uint64_t i = launch.next++;
      if (i >= launch.limit) break;
      run_cluster(launch, launch.block_at(i));
    }
  }
  for (Worker* member : cluster.members) launch.switches += member->switches;
}

}  // namespace emu
