// One OS thread's share of the emulation: the scheduler's own header.
#pragma once
#include <memory>

#include "access_checks.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "sm90_state.h"

namespace emu {

#if defined(__x86_64__)
constexpr size_t kPage = 4096;
#else
constexpr size_t kPage = 64 * 1024;  // the largest in use
#endif
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;  // not optimised, and with redzones around everything
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kStackStride = kStackBytes + kPage;  // one page of it cannot be touched

struct Worker {
  Worker();
  Worker(const Worker&) = delete;

  void run(Launch& launch);  // clusters until the launch has none left
  void prepare(Launch& launch);
  void guard_stacks(unsigned count);
  void run_cluster(Launch& launch, uint64_t number);
  // A cluster bit by bit: until it is over, one fiber or copy at a time; false: nothing of it can
  // go on by itself.
  void gather(Launch& launch);  // once per launch
  void begin_cluster(Launch& launch, uint64_t number);
  bool advance();
  bool over() const { return abandoned || cluster.live() == 0; }
  void give_up();
  void end_cluster();
  void begin_block(const Launch& launch, Cluster& in, unsigned rank, uint64_t linear);
  void step();  // one fiber, of those that are ready
  void end_block();
  void finish(Fiber& self);  // a fiber's kernel has returned
  void reset_fibers();
  std::string describe_stuck() const;  // of the cluster that it leads
  std::string describe_waits() const;

  uint32_t random() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<uint32_t>(random_state * 0x2545F4914F6CDD1Du >> 32);
  }

  Context home{};  // of the OS thread, while a fiber runs
  Block block{};
  Cluster cluster{};  // that this worker leads
  std::vector<std::unique_ptr<Worker>> peers;
  SharedMemory shared;
  SharedShadow shadow;
  Sm90State sm90;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  char* stacks;
  unsigned guarded = 0;  // of them, with a guard page
  uint64_t random_state = 1, switches = 0;
  bool check_accesses = true;
  bool abandoned = false;  // a fiber has failed: the block is given up
  bool fresh = false;      // all fibers stand at the start of fiber_main's loop
  // How the block that runs draws its next fiber, and whether its copies may land early.
  bool by_priority = false, lands_early = false;
  uint32_t favourite = 0;
  unsigned turn = 0;  // of the cluster's blocks
};

// A well mixed function of v.
inline uint64_t mix(uint64_t v) {
  v += 0x9E3779B97F4A7C15u;
  v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9u;
  v = (v ^ v >> 27) * 0x94D049BB133111EBu;
  return v ^ v >> 31;
}

// Keeps the run's first error and stops the launch. `fiber` may be null.
void record(const Block& block, const Fiber* fiber, const std::string& what);

// All threads of the block that have not exited have arrived: they go on.
void release_barrier(Block& block);
// The same of the cluster.
void release_cluster(Cluster& cluster);

// Runs all clusters of a launch where they may wait for each other; how many workers it took.
size_t run_in_order(Launch& launch, std::vector<std::unique_ptr<Worker>>& workers);

// launch_checks.cpp
std::string kernel_name(const void* kernel);
// What is wrong with a launch, empty when nothing is.
std::string check_configuration(const void* kernel, dim3 grid, dim3 block, size_t dynamic_bytes);

}  // namespace emu
