#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastconv::cpu {

namespace wide {
extern const bool is_built __attribute__((weak));
}

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "wide"};

Isa best_isa() {
  if (isa_available(Isa::kAvx512)) return Isa::kAvx512;
  if (isa_available(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kBaseline;
}

int find_isa(const char* name) {
  for (int i = 0; i < 4; ++i)
    if (std::strcmp(name, kNames[i]) == 0 && isa_available(static_cast<Isa>(i))) return i;
  return -1;
}

// FASTCONV_CPU_ISA lowers the choice (for tests and for comparing sets); an unavailable name is
// ignored here and reported by fastconv.info.
std::atomic<int>& state() {
  static std::atomic<int> isa{[] {
    const char* wanted = std::getenv("FASTCONV_CPU_ISA");
    const int found = wanted ? find_isa(wanted) : -1;
    return found >= 0 ? found : static_cast<int>(best_isa());
  }()};
  return isa;
}

}  // namespace

bool isa_available(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
    case Isa::kWide: return &wide::is_built != nullptr && isa_available(Isa::kAvx2);
#endif
    default: return false;
  }
}

Isa active_isa() { return static_cast<Isa>(state().load(std::memory_order_relaxed)); }

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool set_active_isa(const char* name) {
  const int found = find_isa(name);
  if (found < 0) return false;
  state().store(found, std::memory_order_relaxed);
  return true;
}

}  // namespace fastconv::cpu
