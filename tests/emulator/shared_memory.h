// Shared memory of the block that runs: static arrays, found by the place of their declaration, and
// the dynamic part. Every array starts as NaN and lies between redzones that are checked when the
// block ends; alignment is what CUDA promises and no more.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

// Sixteen bits that are a NaN as fp16, bf16 and, repeated, as fp32 and fp64; as an index it is far
// outside of everything. Fresh memory and redzones hold it; a kernel hardly writes it itself.
constexpr uint16_t kPoison = 0xFFED;

// One per FC_SHARED and template instantiation.
struct SharedSite {
  const char* name;
  size_t bytes, alignment;
};

void* shared_array(const SharedSite& site);
void* dynamic_shared();

// Whether all the bytes belong to one array of the running block.
bool in_shared(const void* p, size_t bytes);
// For messages: "tile+132", or "not in shared memory".
const char* describe_shared(const void* p, char (&text)[96]);

void fill_poison(void* p, size_t bytes);
bool is_poison(const void* p, size_t bytes);

// --- for the scheduler --------------------------------------------------------------------------

struct SharedMemory;
SharedMemory* new_shared_memory();
constexpr size_t kStaticLimit = 48 * 1024, kSharedLimit = 227 * 1024;
// Before the first fiber of a block runs, and after the last one has ended; the latter returns what
// is wrong (a damaged redzone), empty when nothing is.
struct Launch;
void open_shared(SharedMemory&, size_t dynamic_bytes);
const char* close_shared(SharedMemory&);
size_t shared_in_use(const SharedMemory&);

}  // namespace emu
