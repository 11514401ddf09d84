// What kernel code calls, through device.h and the wrappers in kernels/cuda/detail. Kept apart from
// how it works (scheduler.h), so that a change there compiles no kernel again.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda_types.h"

namespace emu {

// A place in a kernel's source, for messages and to tell barriers apart.
struct Site {
  const char* file;
  int line;
};

// Ends the launch with a message that names kernel, block and thread. Does not return.
[[noreturn]] void fail(const char* what);

// --- variables
// ------------------------------------------------------------------------------------

// Constant for as long as a kernel's function runs, which the compiler may use.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_extent();
__attribute__((const)) dim3 grid_extent();
__attribute__((const)) unsigned lane_index();

// --- barriers and warp collectives
// ----------------------------------------------------------------

// Returns how many threads came with a true predicate; `arrived`: how many came at all.
unsigned block_barrier(const char* kind, bool predicate, Site site, unsigned* arrived = nullptr);

// Barriers 1 to 15, for `threads` threads (a multiple of 32) of the block; !wait: only arrives.
void named_barrier(unsigned id, unsigned threads, bool wait, Site site);

// Orders the memory accesses of the warp's lanes before and after it.
void warp_barrier(uint32_t mask, Site site);

// The value of lane `source` (of `bytes` bytes, in place), NaN if that lane takes no part.
void warp_shuffle(const char* name, uint32_t mask, void* value, unsigned bytes, unsigned source,
                  Site site);

// The lanes whose predicate is true.
uint32_t warp_vote(const char* name, uint32_t mask, bool predicate, Site site);

// --- shared memory
// ----------------------------------------------------------------------------------

// One per FC_SHARED and template instantiation.
struct SharedSite {
  const char* name;
  size_t bytes, alignment;
};

void* shared_array(const SharedSite& site);
void* dynamic_shared();

// --- cp.async
// ---------------------------------------------------------------------------------------

// A copy from global to shared memory that lands as late as the program allows, namely in the wait
// that names it. Until then its destination reads as NaN, from the moment of issue, so that both
// reading too early and overwriting what others still read show; any access to a pending
// destination is an error.
void async_copy(void* shared, const void* global, unsigned bytes, bool valid);
void async_commit();
// Lands all but the `pending` youngest groups.
void async_wait(unsigned pending);

// --- ldmatrix, mma.sync
// -----------------------------------------------------------------------------

// registers: `count` (2, 4) per lane; row: 16 bytes in shared memory, aligned to 16.
void load_matrix(uint32_t* registers, int count, bool transposed, const void* row, Site site);

enum class Operand { kHalf, kBfloat16, kTf32 };

// d += a * b: m16n8k16 for the 16-bit types, m16n8k8 for TF32. a: 4 registers, b: 2, d: 4.
void multiply_accumulate(Operand type, float* d, const uint32_t* a, const uint32_t* b, Site site);

// cvt.rna.tf32.f32: 10 bits of mantissa, ties away from zero.
uint32_t round_to_tf32(float value);

// --- launches
// ---------------------------------------------------------------------------------------

// Runs the kernel on every block of the grid; returns a cudaError_t.
int run_launch(const void* kernel, void (*invoke)(void*), void* arguments, size_t argument_bytes,
               dim3 grid, dim3 block, size_t dynamic_bytes);

}  // namespace emu
