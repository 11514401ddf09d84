// Global memory for kernels under test: buffers between pages that cannot be touched, so that an
// access outside of one faults instead of reading a neighbour. Buffers come and go between runs,
// not during one.
#pragma once
#include <cstddef>
#include <string>

#include "access_checks.h"

namespace emu {

// Where in its pages a buffer lies.
enum class Placement {
  kEnd,         // its last byte is the last of a page: an access behind it faults at once
  kStart,       // its first byte is the first of a page
  kEndAligned,  // as far back as its alignment allows
  kOffset,      // one unit of its alignment behind the first byte of a page: aligned to no more
};

enum class Role { kInput, kOutput };  // a kernel may read an input and nothing else

// Uninitialised: the bytes and all the rest of the pages hold the poison pattern. Sparse: the bytes
// are zero and take no memory until they are touched, for tensors larger than the machine.
enum class Fill { kPoison, kSparse };

class GuardedBuffer {
 public:
  // element_bytes: what threads write on their own.
  GuardedBuffer(std::string name, Role role, size_t bytes, size_t alignment, size_t element_bytes,
                Placement placement, Fill fill = Fill::kPoison);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  bool near(const void* p) const { return p >= map_ && p < map_ + mapped_; }
  // Whether the rest of the pages is as it was.
  bool margins_intact() const;

  // Who accessed what, per `place_bytes()` of the data; null for inputs.
  Access* shadow() const { return shadow_; }
  size_t place_bytes() const { return place_bytes_; }

 private:
  std::string name_;
  size_t bytes_, mapped_, place_bytes_, shadow_bytes_ = 0;
  unsigned char *map_, *low_, *high_, *data_;
  Access* shadow_ = nullptr;
};

// The buffer that the address lies in or near, or null.
const GuardedBuffer* find_buffer(const void* address);
// For messages: an address in terms of the nearest buffer.
std::string describe_address(const void* address);

}  // namespace emu
