#include "shared_memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "worker.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(p, n) static_cast<void>(0)
#endif

namespace emu {

namespace {
constexpr size_t kRedzone = 256, kPage = 4096;
constexpr size_t kStaticBytes = 64 * 1024, kDynamicBytes = 232 * 1024;

struct Array {
  const SharedSite* site;
  unsigned char* data;
};
}  // namespace

// | no access | static arrays, redzones between | no access | ... dynamic | no access |
// The dynamic part ends at most 255 bytes before the page that cannot be touched.
struct SharedMemory {
  unsigned char *statics, *dynamics;
  unsigned char* top;  // of the static arrays so far
  unsigned char* dynamic;
  size_t dynamic_bytes, static_sum, most;
  std::vector<Array> arrays;
  std::string damage;
};

void fill_poison(void* p, size_t bytes) {
  auto* at = static_cast<unsigned char*>(p);
  const uint64_t pattern = 0x0001000100010001u * kPoison;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) std::memcpy(at + i, &pattern, 8);
  std::memcpy(at + i, &pattern, bytes - i);
}

bool is_poison(const void* p, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(p);
  const uint64_t pattern = 0x0001000100010001u * kPoison;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8)
    if (std::memcmp(at + i, &pattern, 8) != 0) return false;
  return std::memcmp(at + i, &pattern, bytes - i) == 0;
}

SharedMemory* new_shared_memory() {
  const size_t total = kPage + kStaticBytes + kPage + kDynamicBytes + kPage;
  auto* base = static_cast<unsigned char*>(
      mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) throw std::bad_alloc();
  auto* m = new SharedMemory();
  m->statics = base + kPage;
  m->dynamics = m->statics + kStaticBytes + kPage;
  mprotect(m->statics, kStaticBytes, PROT_READ | PROT_WRITE);
  mprotect(m->dynamics, kDynamicBytes, PROT_READ | PROT_WRITE);
  return m;
}

void open_shared(SharedMemory& m, size_t dynamic_bytes) {
  m.arrays.clear();
  m.static_sum = 0;
  m.dynamic_bytes = dynamic_bytes;
  fill_poison(m.statics, kRedzone);
  m.top = m.statics + kRedzone;
  // Aligned to 128 bytes, and to no more.
  const size_t room = kDynamicBytes - dynamic_bytes;
  m.dynamic = m.dynamics + (room - 128) / 256 * 256 + 128;
  fill_poison(m.dynamic - kRedzone, m.dynamics + kDynamicBytes - m.dynamic + kRedzone);
  ASAN_POISON_MEMORY_REGION(m.statics, kStaticBytes);
  ASAN_POISON_MEMORY_REGION(m.dynamics, kDynamicBytes);
  ASAN_UNPOISON_MEMORY_REGION(m.dynamic, dynamic_bytes);
}

const char* close_shared(SharedMemory& m) {
  ASAN_UNPOISON_MEMORY_REGION(m.statics, kStaticBytes);
  ASAN_UNPOISON_MEMORY_REGION(m.dynamics, kDynamicBytes);
  m.most = std::max(m.most, m.static_sum + m.dynamic_bytes);
  m.damage.clear();
  const auto check = [&](const unsigned char* from, const unsigned char* to, const char* where,
                         const char* name) {
    if (!m.damage.empty() || is_poison(from, static_cast<size_t>(to - from))) return;
    m.damage = std::string("write outside of shared memory: ") + where + " " + name;
  };
  for (const Array& a : m.arrays) {
    check(a.data - 128, a.data, "before", a.site->name);
    check(a.data + a.site->bytes, a.data + a.site->bytes + 128, "behind", a.site->name);
  }
  check(m.dynamic - kRedzone, m.dynamic, "before", "the dynamic part");
  check(m.dynamic + m.dynamic_bytes, m.dynamics + kDynamicBytes, "behind", "the dynamic part");
  return m.damage.empty() ? nullptr : m.damage.c_str();
}

size_t shared_in_use(const SharedMemory& m) { return m.most; }

namespace {
SharedMemory& mine() { return *current->block->worker->shared; }
}  // namespace

void* shared_array(const SharedSite& site) {
  SharedMemory& m = mine();
  for (const Array& a : m.arrays)
    if (a.site == &site) return a.data;
  m.static_sum += site.bytes;
  if (m.static_sum > kStaticLimit)
    fail("static shared memory of " + std::to_string(m.static_sum) + " bytes with " + site.name +
         " (at most " + std::to_string(kStaticLimit) + ")");
  if (m.static_sum + m.dynamic_bytes > kSharedLimit)
    fail("shared memory of " + std::to_string(m.static_sum) + " static and " +
         std::to_string(m.dynamic_bytes) + " dynamic bytes (at most " +
         std::to_string(kSharedLimit) + " together)");
  // Aligned as asked for (at least to 16), and to no more.
  const size_t alignment = site.alignment < 16 ? 16 : site.alignment;
  uintptr_t at = (reinterpret_cast<uintptr_t>(m.top) + alignment - 1) / alignment * alignment;
  if (at / alignment % 2 == 0) at += alignment;
  auto* data = reinterpret_cast<unsigned char*>(at);
  unsigned char* end = data + site.bytes + kRedzone;
  if (end > m.statics + kStaticBytes) fail("too many static shared arrays for the emulation");
  ASAN_UNPOISON_MEMORY_REGION(m.top, static_cast<size_t>(end - m.top));
  fill_poison(m.top, static_cast<size_t>(end - m.top));
  ASAN_POISON_MEMORY_REGION(m.top, static_cast<size_t>(end - m.top));
  ASAN_UNPOISON_MEMORY_REGION(data, site.bytes);
  m.top = end;
  m.arrays.push_back({&site, data});
  return data;
}

void* dynamic_shared() { return mine().dynamic; }

bool in_shared(const void* p, size_t bytes) {
  const SharedMemory& m = mine();
  const auto* at = static_cast<const unsigned char*>(p);
  const auto inside = [&](const unsigned char* data, size_t n) {
    return at >= data && bytes <= n && at <= data + (n - bytes);
  };
  if (inside(m.dynamic, m.dynamic_bytes)) return true;
  for (const Array& a : m.arrays)
    if (inside(a.data, a.site->bytes)) return true;
  return false;
}

const char* describe_shared(const void* p, char (&text)[96]) {
  const SharedMemory& m = mine();
  const auto* at = static_cast<const unsigned char*>(p);
  const auto near = [&](const unsigned char* data, size_t n, const char* name) {
    if (at < data - 128 || at >= data + n + 128) return false;
    std::snprintf(text, sizeof text, "%s%+td (of %zu bytes)", name, at - data, n);
    return true;
  };
  for (const Array& a : m.arrays)
    if (near(a.data, a.site->bytes, a.site->name)) return text;
  if (near(m.dynamic, m.dynamic_bytes, "dynamic shared memory")) return text;
  std::snprintf(text, sizeof text, "%p, not in shared memory", p);
  return text;
}

}  // namespace emu
