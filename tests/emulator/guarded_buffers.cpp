#include "guarded_buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <new>
#include <vector>

#include "shared_memory.h"

namespace emu {

namespace {
constexpr size_t kPage = 4096;
// An index that is wrong by a row or an image should still hit no other buffer.
constexpr size_t kGuardBytes = 1 << 20;

std::mutex registry_mutex;
std::vector<const GuardedBuffer*>& registry() {
  static auto* const r = new std::vector<const GuardedBuffer*>;
  return *r;
}
}  // namespace

GuardedBuffer::GuardedBuffer(std::string name, size_t bytes, size_t alignment, Placement placement)
    : name_(std::move(name)), bytes_(bytes) {
  const size_t inner = std::max(kPage, (bytes + alignment + kPage - 1) / kPage * kPage);
  mapped_ = inner + 2 * kGuardBytes;
  void* map = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  map_ = static_cast<unsigned char*>(map);
  low_ = map_ + kGuardBytes;
  high_ = low_ + inner;
  mprotect(low_, inner, PROT_READ | PROT_WRITE);
  data_ = low_;
  if (placement != Placement::kStart) {
    const size_t unit = placement == Placement::kEnd ? 1 : alignment;
    data_ = low_ + (inner - bytes) / unit * unit;
  }
  fill_poison(low_, inner);
  const std::lock_guard<std::mutex> lock(registry_mutex);
  registry().push_back(this);
}

GuardedBuffer::~GuardedBuffer() {
  {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    registry().erase(std::find(registry().begin(), registry().end(), this));
  }
  munmap(map_, mapped_);
}

bool GuardedBuffer::margins_intact() const {
  const unsigned char* end = data_ + bytes_;
  // The pattern has period 2 and started at `low_`.
  const auto intact = [&](const unsigned char* from, const unsigned char* to) {
    for (; from < to; ++from)
      if (*from != static_cast<unsigned char>(kPoison >> 8 * ((from - low_) % 2))) return false;
    return true;
  };
  return intact(low_, data_) && intact(end, high_);
}

std::string describe_address(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  std::string best = std::string(text) + ", not near any buffer";
  ptrdiff_t nearest = ptrdiff_t(1) << 40;
  const std::lock_guard<std::mutex> lock(registry_mutex);
  for (const GuardedBuffer* b : registry()) {
    const ptrdiff_t before = b->data() - at, behind = at - (b->data() + b->bytes());
    const ptrdiff_t distance = std::max(before, behind);
    if (distance >= nearest) continue;
    nearest = distance;
    best = std::string(text) + ", ";
    if (before > 0)
      best += std::to_string(before) + " bytes before " + b->name();
    else if (behind >= 0)
      best += std::to_string(behind) + " bytes behind the end of " + b->name();
    else
      best += "in " + b->name();
    best += " (" + std::to_string(b->bytes()) + " bytes)";
  }
  return best;
}

}  // namespace emu
