#include "guarded_buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <new>
#include <vector>

#include "shared_memory.h"
#include "worker.h"

namespace emu {

namespace {
// Address space only. An offset that wrapped around in 32 bits is wrong by 2^32 elements; even of
// fp64 it must hit no other buffer. A quarter of it where there is no room (39-bit address spaces).
constexpr size_t kGuardBytes = size_t(1) << 35, kSmallGuardBytes = size_t(1) << 33;

std::vector<const GuardedBuffer*>& registry() {
  static auto* const r = new std::vector<const GuardedBuffer*>;
  return *r;
}

// Null when there is no room.
void* reserve(size_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* map = mmap(nullptr, bytes, protection, flags, -1, 0);
  return map == MAP_FAILED ? nullptr : map;
}
}  // namespace

GuardedBuffer::GuardedBuffer(std::string name, Role role, size_t bytes, size_t alignment,
                             size_t element_bytes, Placement placement, Fill fill)
    : name_(std::move(name)), bytes_(bytes), place_bytes_(std::min<size_t>(element_bytes, 4)) {
  const size_t pages = (bytes + alignment + kPage - 1) / kPage;
  const size_t inner = std::max<size_t>(pages, 1) * kPage;
  map_ = nullptr;
  for (const size_t guard : {kGuardBytes, kSmallGuardBytes}) {
    mapped_ = inner + 2 * guard;
    map_ = static_cast<unsigned char*>(reserve(mapped_, PROT_NONE));
    low_ = map_ + guard;
    if (map_ != nullptr) break;
  }
  if (map_ == nullptr) throw std::bad_alloc();
  high_ = low_ + inner;
  mprotect(low_, inner, PROT_READ | PROT_WRITE);
  data_ = low_;
  if (placement == Placement::kOffset) {
    data_ = low_ + alignment;
  } else if (placement != Placement::kStart) {
    const size_t unit = placement == Placement::kEnd ? 1 : alignment;
    data_ = low_ + (inner - bytes) / unit * unit;
  }
  if (fill == Fill::kPoison) fill_poison(low_, inner);
  // The margins hold the pattern in either case.
  fill_poison(low_, static_cast<size_t>(data_ - low_));
  unsigned char* const end = data_ + bytes_;
  fill_poison(end, static_cast<size_t>(high_ - end));
  if (role == Role::kOutput && bytes != 0) {
    shadow_bytes_ = (bytes / place_bytes_ + 1) * sizeof(Access);
    shadow_ = static_cast<Access*>(reserve(shadow_bytes_, PROT_READ | PROT_WRITE));
    if (shadow_ == nullptr) throw std::bad_alloc();
  }
  registry().push_back(this);
}

GuardedBuffer::~GuardedBuffer() {
  registry().erase(std::find(registry().begin(), registry().end(), this));
  if (shadow_ != nullptr) munmap(shadow_, shadow_bytes_);
  munmap(map_, mapped_);
}

bool GuardedBuffer::margins_intact() const {
  const unsigned char* const end = data_ + bytes_;
  return is_poison(low_, static_cast<size_t>(data_ - low_)) &&
         is_poison(end, static_cast<size_t>(high_ - end));
}

const GuardedBuffer* find_buffer(const void* address) {
  for (const GuardedBuffer* b : registry())
    if (b->near(address)) return b;
  return nullptr;
}

std::string describe_address(const void* address) {
  const auto* const at = static_cast<const unsigned char*>(address);
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  const GuardedBuffer* nearest = nullptr;
  ptrdiff_t distance = ptrdiff_t(1) << 40;
  for (const GuardedBuffer* b : registry()) {
    const ptrdiff_t away = std::max(b->data() - at, at - (b->data() + b->bytes()));
    if (away < distance) {
      distance = away;
      nearest = b;
    }
  }
  if (nearest == nullptr) return std::string(text) + ", not near any buffer";
  const ptrdiff_t offset = at - nearest->data();
  std::string place;
  if (offset < 0)
    place = std::to_string(-offset) + " bytes before ";
  else if (static_cast<size_t>(offset) >= nearest->bytes())
    place = std::to_string(static_cast<size_t>(offset) - nearest->bytes()) +
            " bytes behind the end of ";
  else
    place = "byte " + std::to_string(offset) + " of ";
  return place + nearest->name() + " (" + std::to_string(nearest->bytes()) + " bytes)";
}

}  // namespace emu
