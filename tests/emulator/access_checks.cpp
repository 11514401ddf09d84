#include "access_checks.h"

#include <cstdio>
#include <string>

#include "guarded_buffers.h"
#include "worker.h"

// The ends of this module's image, from the linker.
extern "C" __attribute__((visibility("hidden"))) const unsigned char __ehdr_start[], _end[];

namespace emu {

namespace {

// An entry for shared memory:  generation 26 | epoch 16 | syncs of the warp 10 | thread 10 | flags
// 2 and for global memory:       launch 8 | block 24 | epoch 9 | syncs 10 | thread 10 | flags 3
constexpr uint64_t kPending = 1;  // of a write: a copy or store that has not landed
constexpr uint64_t kBulk = 2;     // which is a bulk tensor copy
// Of a read: others have read it as well.
constexpr uint64_t kManyLanes = 1, kManyWarps = 2, kManyBlocks = 4;

inline unsigned thread_of(uint64_t entry) { return static_cast<unsigned>(entry >> 2 & 1023u); }

inline uint64_t shared_entry(const Worker& worker, const Fiber& f) {
  return worker.shadow.generation << 38 | uint64_t(f.block->epoch & 0xFFFFu) << 22 |
         uint64_t(f.warp->syncs & 0x3FFu) << 12 | uint64_t(f.linear) << 2;
}
inline bool same_block(uint64_t a, uint64_t b) { return (a ^ b) >> 38 == 0; }
inline bool same_epoch(uint64_t a, uint64_t b) { return (a ^ b) >> 22 == 0; }
inline bool same_warp(uint64_t a, uint64_t b) { return thread_of(a) / 32 == thread_of(b) / 32; }
inline bool same_thread(uint64_t a, uint64_t b) { return thread_of(a) == thread_of(b); }
// Within one epoch: whether a __syncwarp orders the two, or they are one thread's.
inline bool ordered(uint64_t a, uint64_t b) {
  return same_thread(a, b) || (same_warp(a, b) && ((a ^ b) >> 12 & 0x3FFu) != 0);
}

std::string name_of(const void* p) {
  char text[96];
  return describe_shared(p, text);
}

std::string thread_name(const Fiber& f, uint64_t entry) {
  return coordinates(f.block->fibers[thread_of(entry)].thread);
}

[[noreturn]] void race(const Fiber& f, const char* now, const char* before, uint64_t other,
                       const std::string& where, const void* pc) {
  fail(std::string("race: ") + now + " " + where + " that thread " + thread_name(f, other) + " " +
       before + ", with no barrier between" + code_address(pc));
}

// Cold, so that what runs for every access stays small.
template <bool kWrite>
__attribute__((noinline)) void judge_write_before(Fiber& f, uint64_t before, uint64_t mine,
                                                  const unsigned char* p, const void* pc) {
  if (before & kPending)
    fail(std::string(kWrite ? "write to " : "read of ") + name_of(p) + ", which a " +
         (before & kBulk ? "bulk tensor load" : "cp.async") + " of thread " +
         thread_name(f, before) + " in flight will write" + code_address(pc));
  if (!ordered(before, mine))
    race(f, kWrite ? "write to" : "read of", "wrote", before, name_of(p), pc);
}

template <bool kWrite>
inline void check_shared(Worker& worker, Fiber& f, const unsigned char* p, size_t bytes,
                         const void* pc, uint64_t flags = 0) {
  const uint64_t mine = shared_entry(worker, f);
  const size_t offset = static_cast<size_t>(p - worker.shared.base());
  Access* const places = worker.shadow.places.data();
  if (kWrite && p < f.block->peer_read_high && p + bytes > f.block->peer_read_low)
    fail("write to " + name_of(p) +
         ", next to what another block of the cluster reads, with no barrier of the cluster"
         " between" +
         code_address(pc));
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
    Access& place = places[i];
    if (same_epoch(place.write, mine) || (place.write & kPending && same_block(place.write, mine)))
      judge_write_before<kWrite>(f, place.write, mine, worker.shared.base() + 2 * i, pc);
    if constexpr (kWrite) {
      if (same_epoch(place.read, mine)) {
        const bool free = !(place.read & kManyWarps) && same_warp(place.read, mine) &&
                          ((same_thread(place.read, mine) && !(place.read & kManyLanes)) ||
                           ((place.read ^ mine) >> 12 & 0x3FFu) != 0);
        if (!free)
          race(f, "write to", "read", place.read, name_of(worker.shared.base() + 2 * i), pc);
      }
      place.write = mine | flags;
    } else if (!same_epoch(place.read, mine)) {
      place.read = mine;
    } else if (!(place.read & kManyWarps)) {  // else nothing could be added
      uint64_t others = place.read & kManyLanes;
      if (!same_warp(place.read, mine)) others |= kManyWarps;
      // Readers before a __syncwarp are ordered before a write of this warp that comes after it.
      else if (((place.read ^ mine) >> 12 & 0x3FFu) != 0)
        others &= ~kManyLanes;
      else if (!same_thread(place.read, mine))
        others |= kManyLanes;
      place.read = mine | others;
    }
  }
}

// Tables of constants.
bool in_module(const void* p) { return p >= __ehdr_start && p < _end; }

// Launches are told apart by a number from 1 to 255.
uint64_t global_entry(const Fiber& f) {
  return (f.block->launch->number % 255 + 1) << 56 | (f.block->linear & 0xFFFFFFu) << 32 |
         uint64_t(f.block->epoch & 0x1FFu) << 23 | uint64_t(f.warp->syncs & 0x3FFu) << 13 |
         uint64_t(f.linear) << 3;
}
inline unsigned global_thread_of(uint64_t entry) { return entry >> 3 & 1023u; }
inline bool same_launch(uint64_t a, uint64_t b) { return (a ^ b) >> 56 == 0; }
inline bool same_global_block(uint64_t a, uint64_t b) { return (a ^ b) >> 32 == 0; }
inline bool same_global_epoch(uint64_t a, uint64_t b) { return (a ^ b) >> 23 == 0; }
inline bool same_global_warp(uint64_t a, uint64_t b) {
  return global_thread_of(a) / 32 == global_thread_of(b) / 32;
}
// Of one warp in one epoch: no __syncwarp between.
inline bool same_global_sync(uint64_t a, uint64_t b) { return (a ^ b) >> 13 == 0; }

// Whether the two accesses are of one launch and nothing orders them.
bool global_conflict(uint64_t before, uint64_t mine) {
  if (!same_launch(before, mine)) return false;
  if (!same_global_block(before, mine)) return true;
  if (!same_global_epoch(before, mine)) return false;
  if (!same_global_warp(before, mine)) return true;
  return same_global_sync(before, mine) && global_thread_of(before) != global_thread_of(mine);
}

// Whether a flag's release and a wait for it lie between a write of another block and now. Epochs
// go round: one is before another if it is less than half of their range behind.
bool handed_over(const Fiber& f, uint64_t before, uint64_t mine) {
  const auto epochs = [](uint64_t from, uint64_t to) {
    return ((to >> 23 & 0x1FFu) - (from >> 23 & 0x1FFu)) & 0x1FFu;
  };
  // Whether `first` is ordered before `then`, of one block.
  const auto before_it = [&](uint64_t first, uint64_t then) {
    const uint64_t passed = epochs(first, then);
    if (passed != 0) return passed < 0x100u;
    if (!same_global_warp(first, then)) return false;
    const uint64_t syncs = ((then >> 13 & 0x3FFu) - (first >> 13 & 0x3FFu)) & 0x3FFu;
    return syncs == 0 ? global_thread_of(first) == global_thread_of(then) : syncs < 0x200u;
  };
  for (const HandOver& each : f.block->handed_over)
    if (same_global_block(each.released, before) && before_it(before, each.released) &&
        before_it(each.acquired, mine))
      return true;
  return false;
}

// Whether a write now conflicts with one of the reads that the entry stands for.
bool conflicts_with_reads(uint64_t read, uint64_t mine) {
  if (global_conflict(read, mine)) return true;
  if (!same_launch(read, mine)) return false;
  if (read & kManyBlocks) return true;
  if (!same_global_epoch(read, mine)) return false;
  return read & kManyWarps || (read & kManyLanes && same_global_sync(read, mine));
}

// What is left of earlier reads in the entry of this one.
uint64_t other_reads(uint64_t read, uint64_t mine) {
  if (!same_launch(read, mine)) return 0;
  uint64_t others = read & kManyBlocks;
  if (!same_global_block(read, mine)) others |= kManyBlocks;
  if (!same_global_epoch(read, mine)) return others;
  others |= read & kManyWarps;
  if (!same_global_warp(read, mine)) return others | kManyWarps;
  // Those before a __syncwarp are ordered before whatever this warp does after it.
  if (!same_global_sync(read, mine)) return others;
  others |= read & kManyLanes;
  return global_thread_of(read) == global_thread_of(mine) ? others : others | kManyLanes;
}

[[noreturn]] void global_race(const Fiber& f, const char* now, const char* before, uint64_t other,
                              const void* p, const void* pc) {
  std::string who = "thread " + coordinates(f.block->fibers[global_thread_of(other)].thread);
  const uint64_t block = other >> 32 & 0xFFFFFFu;
  if (block != (f.block->linear & 0xFFFFFFu)) who += " of block number " + std::to_string(block);
  fail(std::string("race: ") + now + " " + describe_address(p) + ", which " + who + " " + before +
       " in the same launch" + code_address(pc));
}

// Blocks on several OS threads share these entries: an update may get lost, and then a race stays
// undetected, but none is made up.
uint64_t load(const uint64_t& v) { return __atomic_load_n(&v, __ATOMIC_RELAXED); }
void store(uint64_t& v, uint64_t value) { __atomic_store_n(&v, value, __ATOMIC_RELAXED); }

template <bool kWrite>
void check_global(Fiber& f, const unsigned char* p, size_t bytes, const void* pc,
                  uint64_t flags = 0) {
  const GuardedBuffer* buffer = find_buffer(p);
  if (buffer == nullptr) {
    const Launch& launch = *f.block->launch;
    const auto* const arguments = static_cast<const unsigned char*>(launch.arguments);
    const bool parameter = p >= arguments && p + bytes <= arguments + launch.argument_bytes;
    if (!parameter && !in_module(p))
      fail(std::string("out of bounds: ") + (kWrite ? "write to " : "read of ") +
           describe_address(p) + code_address(pc));
    return;
  }
  const unsigned char* const end = buffer->data() + buffer->bytes();
  if (p < buffer->data() || p + bytes > end)
    fail(std::string("out of bounds: ") + (kWrite ? "write to " : "read of ") +
         describe_address(p < end && p >= buffer->data() ? end : p) + code_address(pc));
  if (buffer->shadow() == nullptr) {
    if (kWrite) fail("write to " + describe_address(p) + ", which is an input" + code_address(pc));
    return;
  }
  const uint64_t mine = global_entry(f);
  const size_t offset = static_cast<size_t>(p - buffer->data());
  const size_t last = (offset + bytes - 1) / buffer->place_bytes();
  for (size_t i = offset / buffer->place_bytes(); i <= last; ++i) {
    Access& place = buffer->shadow()[i];
    const uint64_t write = load(place.write), read = load(place.read);
    if (write & kPending && same_launch(write, mine))
      fail(std::string(kWrite ? "write to " : "read of ") + describe_address(p) +
           ", which a bulk tensor store in flight will write" + code_address(pc));
    if (global_conflict(write, mine) && !handed_over(f, write, mine))
      global_race(f, kWrite ? "write to" : "read of", "wrote", write, p, pc);
    if constexpr (kWrite) {
      if (conflicts_with_reads(read, mine)) global_race(f, "write to", "read", read, p, pc);
      store(place.write, mine | flags);
    } else {
      store(place.read, mine | other_reads(read, mine));
    }
  }
}

template <bool kWrite>
inline void check(Fiber& f, const void* address, size_t bytes, const void* pc) {
  const auto* const p = static_cast<const unsigned char*>(address);
  Worker& worker = *f.block->worker;
  if (!worker.check_accesses) return;
  if (static_cast<size_t>(p - worker.shared.base()) < SharedMemory::kSpan) {
    if (!worker.shared.contains(p, bytes))
      fail(std::string("out of bounds: ") + (kWrite ? "write to " : "read of ") + name_of(p) +
           code_address(pc));
    check_shared<kWrite>(worker, f, p, bytes, pc);
    return;
  }
  const auto* const stacks = reinterpret_cast<const unsigned char*>(worker.stacks);
  if (static_cast<size_t>(p - stacks) < kMaxThreads * kStackStride) return;
  check_global<kWrite>(f, p, bytes, pc);
}

}  // namespace

void note_read(Fiber& f, const void* p, size_t bytes) { check<false>(f, p, bytes, nullptr); }

void note_copy(Fiber& f, const void* shared, size_t bytes) {
  Worker& worker = *f.block->worker;
  if (worker.check_accesses)
    check_shared<true>(worker, f, static_cast<const unsigned char*>(shared), bytes, nullptr,
                       kPending);
}

void note_landing(Fiber& f, const void* shared, size_t bytes) {
  Worker& worker = *f.block->worker;
  if (!worker.check_accesses) return;
  const auto* const p = static_cast<const unsigned char*>(shared);
  const size_t offset = static_cast<size_t>(p - worker.shared.base());
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i)
    worker.shadow.places[i].write = shared_entry(worker, f);
}

// --- the asynchronous proxy -------------------------------------------------------------------

namespace {
// Of an entry or of now: the epoch and the warp's count of __syncwarp, in which order is known.
// One more, so that 0 means never.
uint64_t moment(uint64_t entry) { return (entry >> 12 & 0x3FFFFFFu) + 1; }
}  // namespace

void note_bulk_copy(Fiber& f, const void* shared, size_t bytes) {
  Worker& worker = *f.block->worker;
  if (!worker.check_accesses) return;
  const auto* const p = static_cast<const unsigned char*>(shared);
  const auto offset = static_cast<size_t>(p - worker.shared.base());
  const uint64_t mine = shared_entry(worker, f);
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
    const uint64_t write = worker.shadow.places[i].write;
    if (same_block(write, mine) && !(write & kPending) &&
        f.block->fibers[thread_of(write)].proxy_fence < moment(write))
      fail("a bulk tensor load overwrites " + name_of(worker.shared.base() + 2 * i) +
           ", which thread " + thread_name(f, write) + " wrote without a fence.proxy.async since");
  }
  check_shared<true>(worker, f, p, bytes, nullptr, kPending | kBulk);
}

void note_peer_read(Worker& worker, const void* shared, size_t bytes) {
  if (!worker.check_accesses) return;
  Block& block = worker.block;
  const Fiber& any = block.fibers[0];
  const uint64_t mine = shared_entry(worker, any);
  const auto* const p = static_cast<const unsigned char*>(shared);
  const auto offset = static_cast<size_t>(p - worker.shared.base());
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
    const uint64_t write = worker.shadow.places[i].write;
    if (!same_block(write, mine)) continue;
    if (write & kPending || (write >> 22 & 0xFFFFu) >= (block.cluster_epoch & 0xFFFFu))
      fail("read of shared memory of another block that its thread " + thread_name(any, write) +
           " wrote, with no barrier of the cluster between");
  }
  const bool none = block.peer_read_high == nullptr;
  if (none || p < block.peer_read_low) block.peer_read_low = p;
  if (none || p + bytes > block.peer_read_high) block.peer_read_high = p + bytes;
}

void note_bulk_landing(Worker& worker, const void* shared, size_t bytes) {
  if (!worker.check_accesses) return;
  const auto offset =
      static_cast<size_t>(static_cast<const unsigned char*>(shared) - worker.shared.base());
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) worker.shadow.places[i].write = 0;
}

void note_proxy_fence(Fiber& f) { f.proxy_fence = moment(shared_entry(*f.block->worker, f)); }

void note_async_read(Fiber& f, const void* shared, size_t bytes, const char* what) {
  Worker& worker = *f.block->worker;
  if (!worker.check_accesses) return;
  const uint64_t mine = shared_entry(worker, f);
  const auto* const p = static_cast<const unsigned char*>(shared);
  const auto offset = static_cast<size_t>(p - worker.shared.base());
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
    const uint64_t write = worker.shadow.places[i].write;
    if (!same_block(write, mine)) continue;
    const unsigned char* const at = worker.shared.base() + 2 * i;
    if (same_epoch(write, mine) || write & kPending)
      judge_write_before<false>(f, write, mine, at, nullptr);
    if (f.block->fibers[thread_of(write)].proxy_fence < moment(write))
      fail(std::string(what) + " reads " + name_of(at) + ", which thread " + thread_name(f, write) +
           " wrote without a fence.proxy.async since");
  }
}

void note_write(Fiber& f, const void* p, size_t bytes) { check<true>(f, p, bytes, nullptr); }

void note_bulk_store(Fiber& f, const void* p, size_t bytes) {
  if (f.block->worker->check_accesses)
    check_global<true>(f, static_cast<const unsigned char*>(p), bytes, nullptr, kPending);
}

void note_bulk_store_landing(Fiber& f, const void* p, size_t bytes) {
  if (!f.block->worker->check_accesses) return;
  const auto* const at = static_cast<const unsigned char*>(p);
  const GuardedBuffer* const buffer = find_buffer(p);
  const auto offset = static_cast<size_t>(at - buffer->data());
  for (size_t i = offset / buffer->place_bytes(); i <= (offset + bytes - 1) / buffer->place_bytes();
       ++i)
    store(buffer->shadow()[i].write, global_entry(f));
}

uint64_t note_release(Fiber& f, const void* flag, size_t bytes) {
  check<true>(f, flag, bytes, nullptr);
  return global_entry(f);
}

void note_acquire(Fiber& f, uint64_t released) {
  f.block->handed_over.push_back({released, global_entry(f)});
}

// --- what the compiler calls ------------------------------------------------------------------

#define FC_HOOK extern "C" __attribute__((visibility("hidden")))
#define FC_CHECK(write, p, bytes) \
  if (current != nullptr) check<write>(*current, p, bytes, __builtin_return_address(0))
#define FC_ACCESS_HOOKS(bytes)                                                      \
  FC_HOOK void __tsan_read##bytes(void* p) { FC_CHECK(false, p, bytes); }           \
  FC_HOOK void __tsan_write##bytes(void* p) { FC_CHECK(true, p, bytes); }           \
  FC_HOOK void __tsan_unaligned_read##bytes(void* p) { FC_CHECK(false, p, bytes); } \
  FC_HOOK void __tsan_unaligned_write##bytes(void* p) { FC_CHECK(true, p, bytes); }
FC_ACCESS_HOOKS(1)
FC_ACCESS_HOOKS(2)
FC_ACCESS_HOOKS(4)
FC_ACCESS_HOOKS(8)
FC_ACCESS_HOOKS(16)
FC_HOOK void __tsan_read_range(void* p, size_t bytes) { FC_CHECK(false, p, bytes); }
FC_HOOK void __tsan_write_range(void* p, size_t bytes) { FC_CHECK(true, p, bytes); }
FC_HOOK void __tsan_vptr_update(void**, void*) {}
FC_HOOK void __tsan_func_entry(void*) {}
FC_HOOK void __tsan_func_exit(void*) {}
FC_HOOK void __tsan_init() {}
FC_HOOK void __tsan_atomic_thread_fence(int order) { __atomic_thread_fence(order); }

#if !defined(__SANITIZE_ADDRESS__)  // the sanitizers' own library has these
namespace {
// The compiler's tables, as libubsan documents them.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment, access;
};
}  // namespace

FC_HOOK void __ubsan_handle_type_mismatch_v1(TypeMismatch* what, uintptr_t pointer) {
  if (current == nullptr) return;
  char text[64];
  std::snprintf(text, sizeof text, "0x%zx, not a multiple of %d", static_cast<size_t>(pointer),
                1 << what->log_alignment);
  fail(std::string("misaligned access to ") + what->type->name + " at " + text + ", " +
       place({what->location.file, static_cast<int>(what->location.line)}));
}
#endif

}  // namespace emu
