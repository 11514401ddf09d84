// Shared memory of the block that runs: static arrays, found by the place of their declaration, and
// the dynamic part. Every array starts as NaN and lies between redzones that are checked when the
// block ends; alignment is what CUDA promises and no more.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel_interface.h"

namespace emu {

// Sixteen bits that are a NaN as fp16, bf16 and, repeated, as fp32 and fp64; as an index it is far
// outside of everything. Fresh memory and redzones hold it; a kernel hardly writes it itself.
constexpr uint16_t kPoison = 0xFFED;
void fill_poison(void* p, size_t bytes);
bool is_poison(const void* p, size_t bytes);

// For messages: "tile+132 (of 128 bytes)", or an address that is "not in shared memory".
const char* describe_shared(const void* p, char (&text)[96]);
// Whether all the bytes belong to one array of the running block.
bool in_shared(const void* p, size_t bytes);

// --- for the scheduler ------------------------------------------------------------------------

constexpr size_t kStaticLimit = 48 * 1024, kSharedLimit = 227 * 1024;

// | no access | static arrays, redzones between | no access | ... dynamic | no access |
// The dynamic part ends at most 255 bytes before the page that cannot be touched.
class SharedMemory {
 public:
  static constexpr size_t kStaticBytes = 64 * 1024, kDynamicBytes = 256 * 1024;
  static constexpr size_t kGapBytes = 64 * 1024;  // pages that cannot be touched
  static constexpr size_t kSpan = kStaticBytes + kGapBytes + kDynamicBytes;

  SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  // Before the first fiber of a block runs, and after the last one has ended; the latter returns
  // what is wrong (a damaged redzone), empty when nothing is.
  void open(size_t dynamic_bytes);
  std::string close();

  void* array(const SharedSite& site);
  unsigned char* dynamic() const { return dynamic_; }
  bool contains(const unsigned char* p, size_t bytes) const {
    return (p >= recent_low_ && p + bytes <= recent_high_) || search(p, bytes);
  }
  const char* describe(const void* p, char (&text)[96]) const;
  unsigned char* base() const { return statics_; }
  // A multiple of 1024; the dynamic part starts somewhere behind it.
  unsigned char* dynamic_base() const { return dynamics_; }
  size_t most_used() const { return most_used_; }

 private:
  struct Array {
    const SharedSite* site;
    unsigned char* data;
  };
  bool search(const unsigned char* p, size_t bytes) const;

  unsigned char *statics_, *dynamics_;
  unsigned char* top_ = nullptr;  // of the static arrays so far
  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0, static_sum_ = 0, most_used_ = 0;
  std::vector<Array> arrays_;
  mutable const unsigned char *recent_low_ = nullptr, *recent_high_ = nullptr;  // array asked for
};

}  // namespace emu
