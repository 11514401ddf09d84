// Global memory for kernels under test: buffers between pages that cannot be touched, so that an
// access outside of one faults instead of reading a neighbour.
#pragma once
#include <cstddef>
#include <string>

namespace emu {

// Where in its pages a buffer lies.
enum class Placement {
  kEnd,         // its last byte is the last of a page: an access behind it faults at once
  kStart,       // its first byte is the first of a page
  kEndAligned,  // as far back as its alignment allows
};

class GuardedBuffer {
 public:
  // The bytes and all the rest of the pages hold the poison pattern.
  GuardedBuffer(std::string name, size_t bytes, size_t alignment, Placement placement);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  // Whether the rest of the pages is as it was.
  bool margins_intact() const;

 private:
  std::string name_;
  size_t bytes_, mapped_;
  unsigned char *map_, *low_, *high_, *data_;
};

// For messages: an address in terms of the nearest buffer.
std::string describe_address(const void* address);

}  // namespace emu
