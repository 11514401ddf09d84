#include "shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "worker.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(p, n) static_cast<void>(0)
#endif

namespace emu {

namespace {
constexpr size_t kRedzone = 256;
constexpr uint64_t kPattern = 0x0001000100010001u * kPoison;
}  // namespace

void fill_poison(void* p, size_t bytes) {
  auto* at = static_cast<unsigned char*>(p);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) std::memcpy(at + i, &kPattern, 8);
  std::memcpy(at + i, &kPattern, bytes - i);
}

bool is_poison(const void* p, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(p);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8)
    if (std::memcmp(at + i, &kPattern, 8) != 0) return false;
  return std::memcmp(at + i, &kPattern, bytes - i) == 0;
}

SharedMemory::SharedMemory() {
  void* map = mmap(nullptr, kSpan + 2 * kGapBytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  statics_ = static_cast<unsigned char*>(map) + kGapBytes;
  dynamics_ = statics_ + kStaticBytes + kGapBytes;
  mprotect(statics_, kStaticBytes, PROT_READ | PROT_WRITE);
  mprotect(dynamics_, kDynamicBytes, PROT_READ | PROT_WRITE);
}

void SharedMemory::open(size_t dynamic_bytes) {
  arrays_.clear();
  recent_low_ = recent_high_ = nullptr;
  static_sum_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  top_ = statics_ + kRedzone;
  fill_poison(statics_, kRedzone);
  // Aligned to 128 bytes, and to no more.
  dynamic_ = dynamics_ + (kDynamicBytes - dynamic_bytes - 128) / 256 * 256 + 128;
  unsigned char* const from = dynamic_ - std::min<size_t>(kRedzone, dynamic_ - dynamics_);
  fill_poison(from, static_cast<size_t>(dynamics_ + kDynamicBytes - from));
  ASAN_POISON_MEMORY_REGION(statics_, kStaticBytes);
  ASAN_POISON_MEMORY_REGION(dynamics_, kDynamicBytes);
  ASAN_UNPOISON_MEMORY_REGION(dynamic_, dynamic_bytes);
}

std::string SharedMemory::close() {
  ASAN_UNPOISON_MEMORY_REGION(statics_, kStaticBytes);
  ASAN_UNPOISON_MEMORY_REGION(dynamics_, kDynamicBytes);
  most_used_ = std::max(most_used_, static_sum_ + dynamic_bytes_);
  std::string damage;
  const auto check = [&](const unsigned char* from, size_t bytes, const char* where,
                         const char* name) {
    if (damage.empty() && !is_poison(from, bytes))
      damage = std::string("write outside of shared memory: ") + where + " " + name;
  };
  for (const Array& a : arrays_) {
    check(a.data - kRedzone / 2, kRedzone / 2, "before", a.site->name);
    check(a.data + a.site->bytes, kRedzone / 2, "behind", a.site->name);
  }
  const unsigned char* const end = dynamic_ + dynamic_bytes_;
  check(dynamic_ - 128, 128, "before", "the dynamic part");
  check(end, static_cast<size_t>(dynamics_ + kDynamicBytes - end), "behind", "the dynamic part");
  return damage;
}

void* SharedMemory::array(const SharedSite& site) {
  for (const Array& a : arrays_)
    if (a.site == &site) return a.data;
  static_sum_ += site.bytes;
  if (static_sum_ > kStaticLimit)
    fail("static shared memory of " + std::to_string(static_sum_) + " bytes with " + site.name +
         " (at most " + std::to_string(kStaticLimit) + ")");
  if (static_sum_ + dynamic_bytes_ > kSharedLimit)
    fail("shared memory of " + std::to_string(static_sum_) + " static and " +
         std::to_string(dynamic_bytes_) + " dynamic bytes (at most " +
         std::to_string(kSharedLimit) + " together)");
  // Aligned as asked for (at least to 16), and to no more.
  const size_t alignment = std::max<size_t>(site.alignment, 16);
  uintptr_t at = (reinterpret_cast<uintptr_t>(top_) + alignment - 1) / alignment * alignment;
  if (at / alignment % 2 == 0) at += alignment;
  auto* const data = reinterpret_cast<unsigned char*>(at);
  unsigned char* const end = data + site.bytes + kRedzone;
  if (end > statics_ + kStaticBytes) fail("too many static shared arrays for the emulation");
  ASAN_UNPOISON_MEMORY_REGION(top_, static_cast<size_t>(end - top_));
  fill_poison(top_, static_cast<size_t>(end - top_));
  ASAN_POISON_MEMORY_REGION(top_, static_cast<size_t>(end - top_));
  ASAN_UNPOISON_MEMORY_REGION(data, site.bytes);
  top_ = end;
  arrays_.push_back({&site, data});
  return data;
}

bool SharedMemory::search(const unsigned char* p, size_t bytes) const {
  const auto inside = [&](const unsigned char* data, size_t n) {
    if (p < data || p + bytes > data + n) return false;
    recent_low_ = data;
    recent_high_ = data + n;
    return true;
  };
  if (inside(dynamic_, dynamic_bytes_)) return true;
  for (const Array& a : arrays_)
    if (inside(a.data, a.site->bytes)) return true;
  return false;
}

const char* SharedMemory::describe(const void* p, char (&text)[96]) const {
  const auto* at = static_cast<const unsigned char*>(p);
  const auto near = [&](const unsigned char* data, size_t n, const char* name) {
    if (at < data - 128 || at >= data + n + 128) return false;
    std::snprintf(text, sizeof text, "%s%+td (of %zu bytes)", name, at - data, n);
    return true;
  };
  for (const Array& a : arrays_)
    if (near(a.data, a.site->bytes, a.site->name)) return text;
  if (near(dynamic_, dynamic_bytes_, "dynamic shared memory")) return text;
  std::snprintf(text, sizeof text, "%p, not in shared memory", p);
  return text;
}

void* shared_array(const SharedSite& site) { return current->block->worker->shared.array(site); }
void* dynamic_shared() { return current->block->worker->shared.dynamic(); }
bool in_shared(const void* p, size_t bytes) {
  return current->block->worker->shared.contains(static_cast<const unsigned char*>(p), bytes);
}
const char* describe_shared(const void* p, char (&text)[96]) {
  return current->block->worker->shared.describe(p, text);
}

}  // namespace emu
