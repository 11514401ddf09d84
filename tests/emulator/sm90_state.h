// The asynchronous engines of compute capability 9.0, as one block sees them: mbarriers, bulk
// tensor copies in flight, stores of each thread, warpgroup products of each warp.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "scheduler.h"
#include "sm90_interface.h"

namespace emu {

// What a copy has brought, until the phase that counts it completes.
struct Landing {
  unsigned char* to;
  Swizzle swizzle;
  std::vector<unsigned char> bytes;
};

struct Mbarrier {
  const unsigned char* at;
  unsigned count, pending;  // arrivals of a phase, and how many are missing from the present one
  int64_t bytes;            // expected less arrived
  uint64_t phase;           // completed
  unsigned initialiser;     // thread
  bool fenced, clustered;   // what makes the init visible to the block, and then to its peers
  std::vector<Landing> landings;
};

struct TensorCopy {
  TensorMap map;
  int at[kTensorRank], offset[3];
  unsigned char* to;
  size_t barrier;
};

struct TensorStore {
  TensorMap map;
  int at[kTensorRank];
  const unsigned char* from;
  std::vector<unsigned char> bytes;  // as they were when it was issued
  bool landed;
};
struct StoreGroup {
  std::vector<TensorStore> stores;
  bool source_free;  // the thread knows that they have read shared memory
};
struct StoreQueue {
  std::vector<TensorStore> open;
  std::deque<StoreGroup> groups;
};

// One matrix of accumulators of a warp: which registers of which lanes, and their values while
// products are in flight.
struct Accumulators {
  float* lanes[kWarpSize];
  unsigned n;
  unsigned in_flight = 0;
  bool used = false;
  std::vector<float> values;  // [16][n]
};
// An operand in registers: of which lanes, and its bytes [16][32] at the last fence.
struct RegisterOperand {
  const uint32_t* lanes[kWarpSize];
  std::vector<unsigned char> fenced;
};
struct PendingProduct {
  WarpgroupProduct what;
  size_t accumulators;
  int register_operand;  // its number, -1: a is in shared memory
  // Operands as they were when it was issued, in bytes, and where they lie.
  std::vector<unsigned char> a, b;
  uint32_t low[2], high[2];
};
struct WarpProducts {
  std::vector<Accumulators> accumulators;
  std::vector<RegisterOperand> register_operands;
  std::vector<PendingProduct> open;
  std::deque<std::vector<PendingProduct>> groups;
  size_t issued = 0;
  bool fenced = false;
  unsigned registers = 0;
};

struct Sm90State {
  std::vector<Mbarrier> barriers;
  std::vector<TensorCopy> copies;  // in flight
  std::vector<StoreQueue> stores;  // by thread
  std::vector<WarpProducts> warps;
  std::vector<std::vector<uint64_t>> issued;  // by warpgroup: what its warps have to issue alike
  uint64_t random = 1;
  bool used = false;

  void reset(uint64_t seed);  // before a block
  // Completes one copy, chosen at random; false when there is none.
  bool land_one(Block& block);
  // Once in a while, in blocks whose seed says so: copies that land early are as legal as late
  // ones.
  bool lands_now();
  // True once in so many times.
  bool flip(unsigned sides);
  // Of a block whose threads have all exited: what they left unfinished.
  std::string leftovers() const;
};

// A thread's kernel has returned.
void check_exit(const Fiber& self);
void exit_with_stores(StoreQueue& stores);
// What an instruction asks of its map and of the address in shared memory.
void check_map(const TensorMap* map, int rank, bool im2col, const char* what, Site site);
void check_shared_side(const void* shared, const TensorMap& map, const char* what, Site site);
std::string describe_mbarrier(const Worker& worker, const void* at);
// The block of that rank, to use its shared memory on behalf of the running thread.
Worker& peer_of(unsigned rank, const char* what, Site site);
// Where a place of this block's dynamic shared memory is in that of another one.
unsigned char* peer_place(const Worker& peer, const void* place);
// Whether a product that no warp has waited for reads these shared-memory addresses; the warp.
bool read_by_products(const Sm90State& state, uint32_t low, uint32_t high, unsigned* warp);

}  // namespace emu
