// Instruction sets, chosen at run time. Files named *_isa.cpp are compiled once per set, with
// FC_ISA naming a namespace; each defines tables of function pointers there, and plain code picks
// a table through select_isa(). A default build never uses -march=native.
#pragma once
#include "../common/conv_problem.h"

namespace fastconv::cpu {

// kWide is a test build only: 64-byte vectors compiled for AVX2, so that the code paths of the
// AVX-512 tables run on machines without AVX-512.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kWide = 3 };

FC_API Isa active_isa();
FC_API const char* isa_name(Isa isa);
// False when the set is unknown, not built, or not supported by this processor.
FC_API bool set_active_isa(const char* name);
FC_API bool isa_available(Isa isa);

}  // namespace fastconv::cpu

// Declares `const Type name` in every instruction set's namespace, name##_active(), and
// name##_for(dtype). Vectors of 64 bytes have no fp64 kernels of their own, which would be a tenth
// of the time to compile everything: AVX2's are used beside them.
//
// To plain code kWide's tables are weak, so that only the link tells a test build from another, and
// neither compiles anew what the other has compiled.
#if defined(FC_ISA)
#define FC_IF_BUILT
#else
#define FC_IF_BUILT __attribute__((weak))
#endif
#if defined(__x86_64__)
#define FC_DECLARE_ISA_TABLE(Type, name)                                          \
  namespace baseline {                                                            \
  extern const Type name;                                                         \
  }                                                                               \
  namespace avx2 {                                                                \
  extern const Type name;                                                         \
  }                                                                               \
  namespace avx512 {                                                              \
  extern const Type name;                                                         \
  }                                                                               \
  namespace wide {                                                                \
  extern const Type name FC_IF_BUILT;                                             \
  }                                                                               \
  inline const Type& name##_active() {                                            \
    switch (active_isa()) {                                                       \
      case Isa::kWide: return wide::name;                                         \
      case Isa::kAvx512: return avx512::name;                                     \
      case Isa::kAvx2: return avx2::name;                                         \
      default: return baseline::name;                                             \
    }                                                                             \
  }                                                                               \
  inline const Type& name##_for(DType dtype) {                                    \
    const bool wide = active_isa() == Isa::kAvx512 || active_isa() == Isa::kWide; \
    return wide && dtype == DType::kFloat64 ? avx2::name : name##_active();       \
  }
#else
#define FC_DECLARE_ISA_TABLE(Type, name)                        \
  namespace baseline {                                          \
  extern const Type name;                                       \
  }                                                             \
  inline const Type& name##_active() { return baseline::name; } \
  inline const Type& name##_for(DType) { return baseline::name; }
#endif
