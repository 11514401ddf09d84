// Checks of single memory accesses. The compiler calls a hook before every load and store of kernel
// code that may touch memory others see (-fsanitize=thread without its library), and where a
// pointer is not aligned for its type (-fsanitize=alignment).
//
// A race is: two threads of a block access the same shared memory, at least one writes, and no
// barrier lies between (__syncthreads, or __syncwarp within a warp; shuffles and mma order
// nothing). The same of global memory, and there of different blocks of one launch. Each place
// keeps who wrote and who read it last, and the order in which fibers happen to run does not
// matter: what is found depends on which accesses the barriers leave unordered, not on the
// schedule.
//
// A flag of release and acquire orders what its thread knows to be written before what the waiting
// one does behind it: its own, its warp's before a __syncwarp, its block's before a barrier.
//
// Not seen: what a thread itself writes right behind its release of a flag; races between atomics
// and plain accesses; those past a named barrier by threads that take no part in it (all barriers
// of a block count as one sequence); the second of two readers in one warp when a third thread
// writes; a fence.proxy.async that comes before the write that it is for, with no barrier between
// the two.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

struct Fiber;
struct Worker;

// The last write and the last read of one place, see access_checks.cpp for the bits.
struct Access {
  uint64_t write, read;
};

// Of the shared memory of one worker, two bytes a place. A block's generation is part of every
// entry, so that nothing is cleared between blocks.
struct SharedShadow {
  std::vector<Access> places;
  uint64_t generation = 0;
};

// What instructions do to memory outside of instrumented code.
void note_read(Fiber& fiber, const void* p, size_t bytes);
// A copy into shared memory is in flight: until it lands, any access to the place is an error.
void note_copy(Fiber& fiber, const void* shared, size_t bytes);
void note_landing(Fiber& fiber, const void* shared, size_t bytes);
// The same of a bulk tensor copy, which lands on no thread's account. Threads that wrote there
// before have to have run fence.proxy.async since.
void note_bulk_copy(Fiber& fiber, const void* shared, size_t bytes);
void note_bulk_landing(Worker& worker, const void* shared, size_t bytes);
// Another block of the cluster reads the worker's shared memory: a barrier of the cluster has to
// lie between this and the writes before and behind it.
void note_peer_read(Worker& worker, const void* shared, size_t bytes);
// TMA or wgmma reads shared memory on the fiber's behalf: what threads have written there has to be
// ordered before it, and its writers have to have run fence.proxy.async since.
void note_async_read(Fiber& fiber, const void* shared, size_t bytes, const char* what);
void note_proxy_fence(Fiber& fiber);
void note_write(Fiber& fiber, const void* p, size_t bytes);
// A bulk tensor store to global memory is in flight: until its thread has waited for it, any access
// of the launch to the place is an error.
void note_bulk_store(Fiber& fiber, const void* p, size_t bytes);
void note_bulk_store_landing(Fiber& fiber, const void* p, size_t bytes);
// A flag in global memory that tells others of what this thread knows to be written: a write of it
// now, and the entry that stands for the moment.
uint64_t note_release(Fiber& fiber, const void* flag, size_t bytes);
// The fiber has waited for a flag that was released then.
void note_acquire(Fiber& fiber, uint64_t released);

}  // namespace emu
