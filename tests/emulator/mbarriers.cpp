// mbarriers, and the bulk tensor copies that complete on them.
#include <algorithm>
#include <cstring>

#include "access_checks.h"
#include "guarded_buffers.h"
#include "sm90_state.h"
#include "worker.h"

namespace emu {

namespace {

Sm90State& state() { return current->block->worker->sm90; }

std::string name_of(const void* p) {
  char text[96];
  return describe_shared(p, text);
}

// `of`: the block in whose shared memory it lies, where that is another one.
Mbarrier& find(const void* at, const char* what, Site site, Worker* of = nullptr) {
  for (Mbarrier& barrier : of != nullptr ? of->sm90.barriers : state().barriers) {
    if (barrier.at != at) continue;
    if (!barrier.fenced && barrier.initialiser != current->linear)
      fail(std::string(what) + " at " + place(site) + ": mbarrier " + name_of(at) +
           " is used before its init was made visible (fence.mbarrier_init)");
    if (of != nullptr && !barrier.clustered)
      fail(std::string(what) + " at " + place(site) +
           ": an mbarrier of another block is used with no barrier of the cluster since its init");
    return barrier;
  }
  fail(std::string(what) + " at " + place(site) + ": mbarrier " + name_of(at) +
       " was never initialised");
}

void write_swizzled(const Landing& landing, unsigned char* base) {
  const auto start = static_cast<uint32_t>(landing.to - base);
  for (size_t i = 0; i < landing.bytes.size(); i += 16)
    std::memcpy(base + swizzled(start + static_cast<uint32_t>(i), landing.swizzle),
                &landing.bytes[i], std::min<size_t>(16, landing.bytes.size() - i));
}

// The phase completes when nothing is missing: then, and not before, copies are visible.
void settle(Block& block, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  for (const Landing& landing : barrier.landings) {
    note_bulk_landing(*block.worker, landing.to, landing.bytes.size());
    write_swizzled(landing, block.worker->shared.dynamic_base());
  }
  barrier.landings.clear();
  ++barrier.phase;
  barrier.pending = barrier.count;
  ++block.epoch;
  for (unsigned i = 0; i < block.threads; ++i) {
    Fiber& f = block.fibers[i];
    if (f.wait == Wait::kMbarrier && f.mbarrier == barrier.at && (barrier.phase & 1) != f.parity)
      wake(f);
  }
}

}  // namespace

void mbarrier_init(void* barrier, unsigned count, Site site) {
  const auto wrong = [&](const char* why) {
    fail("mbarrier.init at " + place(site) + " of " + name_of(barrier) + ": " + why);
  };
  if (!in_shared(barrier, 8)) wrong("outside of the block's shared memory");
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) wrong("not aligned to 8 bytes");
  if (count == 0 || count >= 1u << 20) wrong("the count is not 1 to 2^20 - 1");
  state().used = true;
  for (const Mbarrier& other : state().barriers)
    if (other.at == barrier) wrong("initialised before");
  state().barriers.push_back({static_cast<unsigned char*>(barrier),
                              count,
                              count,
                              0,
                              0,
                              current->linear,
                              false,
                              false,
                              {}});
}

void mbarrier_init_fence() {
  for (Mbarrier& barrier : state().barriers)
    if (barrier.initialiser == current->linear) barrier.fenced = true;
}

namespace {
void arrive(Block& block, Mbarrier& barrier, unsigned expected_bytes, Site site) {
  const void* const at = barrier.at;
  if (barrier.pending == 0)
    fail("mbarrier.arrive at " + place(site) + ": more arrivals at " + name_of(at) +
         " than its count of " + std::to_string(barrier.count) + " in one phase");
  barrier.bytes += expected_bytes;
  if (barrier.bytes >= 1 << 20) fail("mbarrier " + name_of(at) + ": expects 2^20 bytes or more");
  --barrier.pending;
  settle(block, barrier);
}
}  // namespace

void mbarrier_arrive(void* at, unsigned expected_bytes, Site site) {
  arrive(*current->block, find(at, "mbarrier.arrive", site), expected_bytes, site);
}

void mbarrier_arrive_peer(void* at, unsigned rank, Site site) {
  constexpr const char* kWhat = "mbarrier.arrive of another block";
  Worker& peer = peer_of(rank, kWhat, site);
  arrive(peer.block, find(peer_place(peer, at), kWhat, site, &peer), 0, site);
}

bool mbarrier_try_wait(void* at, unsigned parity, Site site) {
  if (parity > 1) fail("mbarrier.try_wait at " + place(site) + ": a parity is 0 or 1");
  const Mbarrier* barrier = &find(at, "mbarrier.try_wait", site);
  if ((barrier->phase & 1) == parity) {
    current->mbarrier = at;
    current->parity = parity;
    wait_for(Wait::kMbarrier, site);
    barrier = &find(at, "mbarrier.try_wait", site);
  }
  return (barrier->phase & 1) != parity;
}

std::string describe_mbarrier(const Worker& worker, const void* at) {
  for (const Mbarrier& b : worker.sm90.barriers) {
    char text[96];
    if (b.at == at)
      return std::string(" of ") + worker.shared.describe(at, text) + ", which is in phase " +
             std::to_string(b.phase) + " and lacks " + std::to_string(b.pending) + " of " +
             std::to_string(b.count) + " arrivals and " + std::to_string(b.bytes) + " bytes";
  }
  return "";
}

// --- bulk tensor copies -------------------------------------------------------------------------

void check_map(const TensorMap* map, int rank, bool im2col, const char* what, Site site) {
  const auto wrong = [&](const std::string& why) {
    fail(std::string(what) + " at " + place(site) + ": " + why);
  };
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) wrong("the tensor map is not aligned to 64");
  if (map->magic != TensorMap::kMagic) wrong("the tensor map was not encoded");
  if (map->rank != rank || map->im2col != im2col)
    wrong("the tensor map is of rank " + std::to_string(map->rank) +
          (map->im2col ? ", im2col" : ", tile") + " mode, the instruction is not");
  const GuardedBuffer* const buffer = find_buffer(map->base);
  if (buffer == nullptr || map->base < buffer->data() ||
      map->end() > buffer->data() + buffer->bytes())
    wrong("the tensor map goes beyond " +
          (buffer == nullptr ? std::string("any buffer") : buffer->name()));
}

void check_shared_side(const void* shared, const TensorMap& map, const char* what, Site site) {
  const auto wrong = [&](const std::string& why) {
    fail(std::string(what) + " at " + place(site) + ", " + name_of(shared) + ": " + why);
  };
  if (!in_shared(shared, map.bytes())) wrong("outside of the block's shared memory");
  // The swizzle is of the address, so a box has to start where the pattern does.
  const unsigned alignment =
      map.swizzle == Swizzle::kNone ? 128 : std::max(128u, 8 * swizzle_span(map.swizzle));
  if (shared_address(shared) % alignment != 0)
    wrong("not aligned to " + std::to_string(alignment) + " bytes");
}

namespace {
// To `to` in the shared memory of `worker`'s block, where `completes` counts it.
void load_into(Worker& worker, unsigned char* to, const TensorMap& map, int rank, const int* at,
               const int* offset, const Mbarrier& completes, const char* what, Site site) {
  Sm90State& sm90 = worker.sm90;
  TensorCopy copy{map, {}, {}, to, static_cast<size_t>(&completes - sm90.barriers.data())};
  std::copy(at, at + rank, copy.at);
  if (offset != nullptr) std::copy(offset, offset + map.spatial(), copy.offset);
  if (const char* why = check_coordinates(map, copy.at, copy.offset))
    fail(std::string(what) + " at " + place(site) + ": " + why);
  const auto low = static_cast<uint32_t>(to - worker.shared.dynamic_base());
  const auto high = static_cast<uint32_t>(low + map.bytes());
  unsigned warp = 0;
  if (read_by_products(sm90, low, high, &warp))
    fail(std::string(what) + " at " + place(site) + " overwrites " + name_of(to) +
         ", which a wgmma of warp " + std::to_string(warp) + " may still read");
  const auto meets = [&](const unsigned char* other, size_t bytes) {
    return other < to + map.bytes() && to < other + bytes;
  };
  bool twice = false;
  for (const TensorCopy& other : sm90.copies) twice = twice || meets(other.to, other.map.bytes());
  for (const Mbarrier& other : sm90.barriers)
    for (const Landing& landing : other.landings)
      twice = twice || meets(landing.to, landing.bytes.size());
  if (twice)
    fail(std::string(what) + " at " + place(site) + ": " + name_of(to) +
         " is the destination of another one in flight");
  // What a peer writes is put down to the block's first thread.
  note_bulk_copy(&worker == current->block->worker ? *current : worker.fibers[0], to, map.bytes());
  fill_poison(to, map.bytes());
  sm90.copies.push_back(copy);
}
}  // namespace

void tensor_load(void* shared, const TensorMap* map, int rank, const int* at, const int* offset,
                 void* barrier, Site site) {
  constexpr const char* kWhat = "bulk tensor load";
  check_map(map, rank, offset != nullptr, kWhat, site);
  check_shared_side(shared, *map, kWhat, site);
  load_into(*current->block->worker, static_cast<unsigned char*>(shared), *map, rank, at, offset,
            find(barrier, kWhat, site), kWhat, site);
}

void tensor_load_multicast(void* shared, const TensorMap* map, int rank, const int* at,
                           const int* offset, void* barrier, unsigned mask, Site site) {
  constexpr const char* kWhat = "bulk tensor load by multicast";
  check_map(map, rank, offset != nullptr, kWhat, site);
  check_shared_side(shared, *map, kWhat, site);
  if (mask == 0 || mask > 0xFFFF) fail(std::string(kWhat) + " at " + place(site) + ": no block");
  for (unsigned to = 0; mask >> to != 0; ++to) {
    if (!(mask >> to & 1u)) continue;
    const bool own = to == current->block->rank;
    Worker& worker = own ? *current->block->worker : peer_of(to, kWhat, site);
    const void* const counts = own ? barrier : peer_place(worker, barrier);
    load_into(worker, own ? static_cast<unsigned char*>(shared) : peer_place(worker, shared), *map,
              rank, at, offset, find(counts, kWhat, site, own ? nullptr : &worker), kWhat, site);
  }
}

void fence_proxy_async() { note_proxy_fence(*current); }

uint32_t shared_address(const void* p) {
  const unsigned char* const base = current->block->worker->shared.dynamic_base();
  const auto offset = static_cast<const unsigned char*>(p) - base;
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(SharedMemory::kDynamicBytes))
    fail("the asynchronous engines take dynamic shared memory only, got " + name_of(p));
  return static_cast<uint32_t>(offset);
}

// --- the block's side ---------------------------------------------------------------------------

void Sm90State::reset(uint64_t seed) {
  random = seed | 1;
  if (!used && !stores.empty()) return;
  barriers.clear();
  copies.clear();
  stores.assign(kMaxThreads, {});
  warps.assign(kMaxThreads / kWarpSize, {});
  issued.assign(kMaxThreads / kWarpSize / 4, {});
  used = false;
}

bool Sm90State::land_one(Block& block) {
  if (copies.empty()) return false;
  random = random * 6364136223846793005u + 1442695040888963407u;
  const size_t i = (random >> 33) % copies.size();
  const TensorCopy copy = copies[i];
  copies[i] = copies.back();
  copies.pop_back();
  Mbarrier& barrier = barriers[copy.barrier];
  barrier.landings.push_back({copy.to, copy.map.swizzle, {}});
  Landing& landing = barrier.landings.back();
  landing.bytes.resize(copy.map.bytes());
  fetch_box(copy.map, copy.at, copy.offset, landing.bytes.data());
  // All of the box counts, what is outside of the tensor included.
  barrier.bytes -= static_cast<int64_t>(landing.bytes.size());
  settle(block, barrier);
  return true;
}

bool Sm90State::lands_now() { return !copies.empty() && flip(64); }

bool Sm90State::flip(unsigned sides) {
  random = random * 6364136223846793005u + 1442695040888963407u;
  return (random >> 33) % sides == 0;
}

std::string Sm90State::leftovers() const {
  if (!copies.empty())
    return "the block ends with " + std::to_string(copies.size()) +
           " bulk tensor loads that nothing waited for";
  for (const Mbarrier& barrier : barriers)
    if (barrier.bytes != 0 || !barrier.landings.empty())
      return "the block ends with an mbarrier that expects " + std::to_string(barrier.bytes) +
             " bytes more";
  for (size_t w = 0; w < warps.size(); ++w)
    if (warps[w].issued != issued[w / 4].size())
      return "the warps of a warpgroup issued different numbers of wgmma";
  return "";
}

void check_exit(const Fiber& self) {
  Sm90State& sm90 = self.block->worker->sm90;
  if (!sm90.used) return;
  exit_with_stores(sm90.stores[self.linear]);
  const WarpProducts& products = sm90.warps[self.linear / kWarpSize];
  if (!products.open.empty() || !products.groups.empty())
    fail("thread exits with wgmma that nothing waited for");
}

}  // namespace emu
