#include "scheduler.h"

#include <sys/mman.h>

#include <cstdio>
#include <memory>
#include <new>
#include <numeric>
#include <thread>

#include "memory_faults.h"
#include "shared_memory.h"
#include "worker.h"

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

__thread Fiber* current = nullptr;

namespace {

// The result of a run so far; `begin_run` holds `turn` until `end_run`.
struct Run {
  std::mutex turn, mutex;
  Settings settings;
  Statistics statistics;
  std::string error;
  std::vector<std::unique_ptr<Worker>> workers;
};
Run& run() {
  static Run* const r = new Run;  // never destroyed: a fiber may be stopped in it at exit
  return *r;
}

std::string place(Site site) {
  const char* name = site.file;
  for (const char* p = site.file; *p; ++p)
    if (*p == '/') name = p + 1;
  return std::string(name) + ":" + std::to_string(site.line);
}

std::string coordinates(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

void record(const Block& block, const Fiber* fiber, const std::string& what) {
  std::string text = block.launch->kernel + ": " + what + " [block " + coordinates(block.index);
  if (fiber != nullptr) text += " thread " + coordinates(fiber->thread);
  text += "]";
  const std::lock_guard<std::mutex> lock(run().mutex);
  block.launch->failed = true;
  if (run().error.empty()) run().error = std::move(text);
}

uint64_t mix(uint64_t v) {  // splitmix64's finaliser
  v += 0x9E3779B97F4A7C15u;
  v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9u;
  v = (v ^ v >> 27) * 0x94D049BB133111EBu;
  return v ^ v >> 31;
}

unsigned nth_from(uint32_t mask, unsigned start) {
  // The first set bit at or after `start`, cyclically.
  const uint32_t turned = start == 0 ? mask : mask >> start | mask << (32 - start);
  return (static_cast<unsigned>(__builtin_ctz(turned)) + start) & 31u;
}

void fiber_main() {
  for (;;) {  // once per block
    Fiber& self = *current;
    Launch& launch = *self.block->launch;
    launch.invoke(launch.arguments);
    self.block->worker->finish(self);
  }
}

}  // namespace

// --- errors -------------------------------------------------------------------------------------

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
  bool complete = true;
  for (uint32_t rest = all & ~(1u << self.lane); rest != 0; rest &= rest - 1) {
    const Fiber& other = warp.lanes[__builtin_ctz(rest)];
    if (other.wait != Wait::kWarp) {
      complete = false;
      continue;
    }
    // A lane waiting elsewhere with a disjoint mask may still come; one that names us may not.
    const bool named = other.mask >> self.lane & 1u;
    if (named && (other.mask != mask || other.exchange != exchange))
      fail(std::string(name) + " at " + place(site) + " with mask " + hex(mask) + ", but lane " +
           std::to_string(other.lane) + " waits in " + other.collective + " at " +
           place(other.site) + " with mask " + hex(other.mask));
    complete = complete && named;
  }
  if (!complete) {
    wait_for(Wait::kWarp, site);
    return;
  }
  exchange(warp.lanes, all);
  for (uint32_t rest = all & ~(1u << self.lane); rest != 0; rest &= rest - 1)
    wake(warp.lanes[__builtin_ctz(rest)]);
}

namespace {
void release_barrier(Block& block) {
  BlockBarrier& barrier = block.barrier;
  barrier.result = barrier.votes;
  barrier.reached = barrier.arrived;
  barrier.arrived = barrier.votes = 0;
  for (unsigned i = 0; i < block.threads; ++i)
    if (block.fibers[i].wait == Wait::kBlockBarrier) wake(block.fibers[i]);
}
}  // namespace

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
  for (unsigned i = 0; i < block.threads; ++i) {
    Fiber& other = block.fibers[i];
    if (other.wait == Wait::kNamedBarrier && other.barrier == id) wake(other);
  }
}

// --- a worker: one block after the other
// -----------------------------------------------------------

Worker::Worker()
    : shared(new_shared_memory()), fibers(kMaxThreads), warps(kMaxThreads / kWarpSize) {
  const size_t page = 4096;
  // Every stack has a page in front that cannot be touched. They start at different offsets within
  // a page: equal ones would all compete for the same few cache lines.
  char* base = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackStride, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) throw std::bad_alloc();
  stacks = base;
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    mprotect(base + i * kStackStride, page, PROT_NONE);
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
}

void Worker::reset_fibers() {
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    const size_t colour = i % 16 * 192;
    prepare_context(fibers[i].context, stacks + i * kStackStride + 4096,
                    kStackStride - 4096 - colour, fiber_main);
    fibers[i].copies = CopyQueue();
  }
  fresh = true;
}

void Worker::finish(Fiber& self) {
  if (!self.copies.empty())
    fail("thread exits with " + std::to_string(self.copies.copies.size()) +
         " cp.async copies that nothing waited for");
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
  ++switches;
  switch_context(self.context, home);
}

std::string Worker::describe_stuck() const {
  std::string text = "deadlock:";
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
    const char* what = f.wait == Wait::kWarp           ? f.collective
                       : f.wait == Wait::kBlockBarrier ? block.barrier.kind
                                                       : "named barrier";
    text += " " + std::to_string(count) + " threads wait in " + what + " at " + place(f.site) +
            " (first: thread " + coordinates(f.thread) + ");";
  }
  const unsigned exited = block.threads - block.live;
  text += " " + std::to_string(exited) + " of " + std::to_string(block.threads) + " have exited";
  return text;
}

void Worker::run_block(Launch& launch, uint64_t linear) {
  if (!fresh) reset_fibers();
  random_state = mix(launch.seed ^ mix(linear));
  const uint64_t plane = static_cast<uint64_t>(launch.grid.x) * launch.grid.y;
  block.index = {static_cast<unsigned>(linear % launch.grid.x),
                 static_cast<unsigned>(linear / launch.grid.x % launch.grid.y),
                 static_cast<unsigned>(linear / plane)};
  block.live = block.threads;
  block.barrier = BlockBarrier();
  for (NamedBarrier& barrier : block.named) barrier = NamedBarrier();
  block.ready_warps = 0;
  for (unsigned w = 0; w < block.warp_count; ++w) {
    const unsigned lanes = std::min(block.threads - w * kWarpSize, kWarpSize);
    warps[w].exists = warps[w].ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps[w].done = 0;
    block.ready_warps |= 1u << w;
  }
  for (unsigned i = 0; i < block.threads; ++i) fibers[i].wait = Wait::kNone;
  open_shared(*shared, launch.dynamic_bytes);
  // Two ways to order warps: at random, or by a random priority, which lets one warp run far ahead
  // of the others and so finds missing waits that an even progress hides.
  const bool by_priority = random() & 1u;
  uint32_t favourite = random() % 32;
  while (block.live != 0) {
    if (block.ready_warps == 0) {
      record(block, nullptr, describe_stuck());
      abandoned = true;
      break;
    }
    const uint32_t draw = random();
    if (!by_priority || (draw & 0xFF00u) == 0) favourite = draw >> 27;
    Warp& warp = warps[nth_from(block.ready_warps, favourite)];
    Fiber& next = warp.lanes[nth_from(warp.ready, draw & 31u)];
    warp.ready &= ~(1u << next.lane);
    if (warp.ready == 0) block.ready_warps &= ~(1u << (next.linear / kWarpSize));
    current = &next;
    switch_context(home, next.context);
    current = nullptr;
    if (abandoned) break;
  }
  const char* damage = close_shared(*shared);
  if (!abandoned && damage != nullptr) record(block, nullptr, damage);
  if (abandoned) fresh = false;
  abandoned = false;
}

void Worker::run(Launch& launch) {
  block.launch = &launch;
  block.extent = launch.extent;
  block.grid = launch.grid;
  block.threads = launch.extent.x * launch.extent.y * launch.extent.z;
  block.warp_count = (block.threads + kWarpSize - 1) / kWarpSize;
  for (unsigned i = 0; i < block.threads; ++i)
    fibers[i].thread = {i % launch.extent.x, i / launch.extent.x % launch.extent.y,
                        i / (launch.extent.x * launch.extent.y)};
  switches = 0;
  const FaultScope faults;
  while (!launch.failed) {
    const uint64_t i = launch.next++;
    if (i >= launch.blocks) break;
    const auto at = static_cast<unsigned __int128>(i) * launch.step + launch.first;
    run_block(launch, static_cast<uint64_t>(at % launch.blocks));
  }
  launch.switches += switches;
}

// --- runs and launches
// ----------------------------------------------------------------------------

void begin_run(const Settings& settings) {
  run().turn.lock();
  run().settings = settings;
  run().statistics = Statistics();
  run().error.clear();
}

std::string end_run(Statistics* statistics) {
  if (statistics != nullptr) *statistics = run().statistics;
  std::string error = std::move(run().error);
  run().error.clear();
  run().turn.unlock();
  return error;
}

int run_launch(const void* kernel, void (*invoke)(void*), void* arguments, dim3 grid, dim3 block,
               size_t dynamic_bytes) {
  Run& r = run();
  if (!r.error.empty()) return cudaErrorLaunchFailure;
  Launch launch;
  launch.kernel = kernel_name(kernel);
  const std::string wrong = check_configuration(kernel, grid, block, dynamic_bytes);
  if (!wrong.empty()) {
    r.error = launch.kernel + ": invalid launch configuration: " + wrong;
    return cudaErrorInvalidConfiguration;
  }
  launch.invoke = invoke;
  launch.arguments = arguments;
  launch.grid = grid;
  launch.extent = block;
  launch.dynamic_bytes = dynamic_bytes;
  launch.blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  launch.seed = mix(r.settings.seed ^ mix(r.statistics.launches));
  launch.first = launch.seed % launch.blocks;
  launch.step = launch.seed / 7 % launch.blocks;
  while (std::gcd(launch.step, launch.blocks) != 1) ++launch.step;

  const uint64_t threads = launch.blocks * block.x * block.y * block.z;
  // Starting an OS thread costs as much as a few hundred fibers.
  const uint64_t useful = threads < 2048 ? 1 : launch.blocks;
  const auto workers =
      static_cast<size_t>(std::min<uint64_t>(useful, std::max(1, r.settings.workers)));
  while (r.workers.size() < workers) r.workers.push_back(std::make_unique<Worker>());
  std::vector<std::thread> others;
  for (size_t i = 1; i < workers; ++i)
    others.emplace_back([&launch, &r, i] { r.workers[i]->run(launch); });
  r.workers[0]->run(launch);
  for (std::thread& other : others) other.join();

  ++r.statistics.launches;
  r.statistics.blocks += launch.blocks;
  r.statistics.threads += threads;
  r.statistics.switches += launch.switches;
  for (size_t i = 0; i < workers; ++i)
    r.statistics.shared_bytes =
        std::max<uint64_t>(r.statistics.shared_bytes, shared_in_use(*r.workers[i]->shared));
  return launch.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace emu
