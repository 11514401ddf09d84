// How a block of CUDA threads runs on the CPU.
//
// DESIGN. Every CUDA thread is a fiber. An OS thread (a Worker) runs one block at a time: it picks
// a ready fiber, which runs until it has to wait for others (barrier, warp collective) or ends.
// Which one is picked is random, from a seed: on a GPU nothing is promised between barriers either,
// and a missing barrier shows as a wrong result. Blocks come in a random order, spread over
// workers; the random numbers of a block depend on the seed and its index only. Where blocks wait
// for others of lower index (ordered_launches.cpp), they start in that order, on one OS thread.
//
// A wait is one of these: the fiber's `wait` says for what, and whoever completes the condition
// calls `wake` for everyone who waits for it. When nothing is ready and fibers are left, the block
// is stuck, and the error lists who waits where.
//
// Memory: accesses of kernel code are instrumented by the compiler and checked on the way
// (access_checks.h): data races between barriers, bounds, writes to inputs. What that cannot see
// (the memory is there but the value is not) shows as NaN.
//
// Engines that work asynchronously keep their state beside the fiber (cp.async: Fiber::copies) or
// in the block (named barriers), and follow three rules: what they will write reads as NaN from the
// issue until the program has waited for it; they finish as late as the program's waits allow; what
// they read or write must not change under them. Bulk tensor copies (sm90_state.h) finish one at a
// time, chosen at random, where no fiber is ready; in some blocks now and then earlier, but never
// at once, which would hide a missing wait. Errors go through `fail`, which names kernel, block and
// thread and gives up the launch; fibers are then abandoned where they stand, so nothing that lives
// on a fiber's stack may own memory.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "context.h"
#include "kernel_interface.h"

namespace emu {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kNamedBarriers = 16;

struct Block;
struct Fiber;
struct Warp;
struct Worker;

// --- what a fiber is ----------------------------------------------------------------------------

enum class Wait : uint8_t {
  kNone,
  kBlockBarrier,
  kNamedBarrier,
  kWarp,
  kMbarrier,
  kClusterBarrier,
  kFlag,
  kDone
};

struct PendingCopy {
  unsigned char* shared;
  const unsigned char* global;
  unsigned bytes;
  bool valid;
};

// cp.async of one thread: copies in order of issue; a group is a count of them.
struct CopyQueue {
  std::vector<PendingCopy> copies;
  std::vector<unsigned> groups;
  unsigned open = 0;  // issued since the last commit
  bool empty() const { return copies.empty(); }
};

// Runs when the last lane of a warp collective arrives, on the arguments of all of them
// (lanes[i].argument, for the lanes in the mask).
using Exchange = void (*)(Fiber* lanes, uint32_t mask);

struct Fiber {
  Context context;
  uint3 thread;     // threadIdx
  unsigned linear;  // index within the block
  unsigned lane;
  Warp* warp;
  Block* block;
  Wait wait;
  Site site;  // of the wait
  // The warp collective waited in.
  const char* collective;
  Exchange exchange;
  uint32_t mask;
  void* argument;
  unsigned barrier;      // the named barrier waited at
  const void* mbarrier;  // the one waited at, and for which phase
  unsigned parity;
  const uint64_t* flag;  // in global memory, waited for
  uint64_t proxy_fence;  // when it last ran fence.proxy.async (access_checks.cpp)
  CopyQueue copies;
};

struct Warp {
  Fiber* lanes;
  // Lane masks; waiting: in a collective.
  uint32_t exists, ready, done, waiting;
  uint32_t syncs;  // __syncwarp completed in this block
};

// --- what a block is ----------------------------------------------------------------------------

struct BlockBarrier {
  unsigned arrived = 0;
  unsigned votes = 0;   // how many arrived with a true predicate
  unsigned result = 0;  // of the last completed one
  unsigned reached = 0;
  const char* kind = nullptr;
  Site site{};
};

struct NamedBarrier {
  unsigned expected = 0, arrived = 0;
};

// What a thread has got by waiting for a flag: whatever is ordered before the flag's release, for
// what is ordered behind the wait. Both as entries of access_checks.cpp.
struct HandOver {
  uint64_t released, acquired;
};

struct Launch;

// Blocks that are alive together and reach each other's shared memory: each has a worker of its
// own, and one OS thread runs the fibers of all. Every block is in one, most alone.
struct Cluster {
  std::vector<Worker*> members;  // by rank
  unsigned arrived;              // threads, at the cluster's barrier

  unsigned live() const;
};

struct Block {
  uint3 index;        // blockIdx
  dim3 extent, grid;  // blockDim, gridDim
  Launch* launch;
  Worker* worker;
  Fiber* fibers;
  Warp* warps;
  unsigned threads, warp_count, live;
  uint32_t ready_warps;
  uint64_t linear;  // index within the grid
  uint32_t epoch;   // barriers completed: what lies between two of them is not ordered
  BlockBarrier barrier;
  NamedBarrier named[kNamedBarriers];

  Cluster* cluster;
  unsigned rank;  // within the cluster
  // Since the cluster's last barrier: the epoch that it began, what peers have read of this block's
  // shared memory, and whether they have used any of it.
  uint32_t cluster_epoch;
  const unsigned char *peer_read_low, *peer_read_high;
  bool touched;

  std::vector<HandOver> handed_over;  // by other blocks of the launch
};

// The fiber that runs on this OS thread, or null.
extern __thread Fiber* current __attribute__((tls_model("initial-exec")));

// "file.cuh:12"
std::string place(Site site);
// "(1,2,3)"
std::string coordinates(const uint3& v);

// " <+0x12af>": a return address as an offset within the module, which tests/emulated.py turns into
// source lines. Empty for null.
std::string code_address(const void* pc);

// --- what a launch is ---------------------------------------------------------------------------

struct Launch {
  std::string kernel;
  void (*invoke)(void* arguments);
  void* arguments;
  size_t argument_bytes;
  dim3 grid, extent;
  size_t dynamic_bytes;
  unsigned cluster;       // blocks that run together
  uint64_t blocks, seed;  // the former in clusters
  uint64_t number;        // within the run
  uint64_t limit;         // how many of the blocks are run
  uint64_t first, step;   // coprime with the number of blocks
  double seconds;
  bool check_accesses;
  // Clusters start in the order of their index, and may wait for others (ordered_launches.cpp).
  bool ordered = false;
  std::vector<Worker*> alive;                       // that lead one, in that order
  std::unordered_map<const void*, uint64_t> flags;  // released ones, see access_checks.h
  // The block that runs as the i-th. The first and the last one are always among those that run.
  uint64_t block_at(uint64_t i) const {
    if (limit < blocks && i < 2) return i == 0 ? blocks - 1 : 0;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step + first) % blocks);
  }
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::atomic<uint64_t> switches{0};
};

struct Settings {
  uint64_t seed = 1;
  int workers = 2;  // OS threads
  bool check_accesses = true;
  double seconds = 120;  // of processor time a worker may take for one launch: ends endless loops
  // At most so many blocks of a launch are run: the first, the last and others drawn at random. For
  // problems whose grids and tensors are too large to run (and to hold) entirely.
  uint64_t block_limit = ~uint64_t(0);
};

// What one launch asked for.
struct LaunchRecord {
  std::string kernel;
  uint64_t blocks, threads;  // of the grid, and of one block
  uint64_t dynamic_bytes;
};

struct Statistics {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0;
  uint64_t shared_bytes = 0;  // the most that one block used, static and dynamic
  std::vector<LaunchRecord> records;
};

// A run is what happens between these two: launches of one test. The first error is kept, later
// launches do nothing. One run at a time; begin_run waits for its turn.
void begin_run(const Settings&);
std::string end_run(Statistics* statistics);

// --- what engines call, on a fiber
// ----------------------------------------------------------------

[[noreturn]] void fail(const std::string& what);

// Gives the processor away until somebody calls `wake`.
void wait_for(Wait what, Site site);
void wake(Fiber& fiber);

// Meets the other lanes of `mask` at the same collective; the last one to arrive runs `exchange`
// for all. `argument` must stay valid until then: it may point to the fiber's stack.
void warp_collective(const char* name, uint32_t mask, void* argument, Exchange exchange, Site site);

}  // namespace emu
