// The functions and variables of CUDA C++ that kernels call, on top of the scheduler.
#pragma once
#include <cmath>
#include <type_traits>

#include "half_types.h"
#include "kernel_interface.h"

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_extent())
#define gridDim (::emu::grid_extent())
constexpr int warpSize = 32;

// Where a function is called from: default arguments are evaluated at the call.
#define FC_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

// --- barriers -----------------------------------------------------------------------------------

inline void __syncthreads(FC_CALLER) { emu::block_barrier("__syncthreads", false, {file, line}); }
inline int __syncthreads_count(int predicate, FC_CALLER) {
  return static_cast<int>(emu::block_barrier("__syncthreads_count", predicate != 0, {file, line}));
}
inline int __syncthreads_or(int predicate, FC_CALLER) {
  return emu::block_barrier("__syncthreads_or", predicate != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int predicate, FC_CALLER) {
  unsigned arrived = 0;
  const unsigned votes =
      emu::block_barrier("__syncthreads_and", predicate != 0, {file, line}, &arrived);
  return votes == arrived;
}
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, FC_CALLER) {
  emu::warp_barrier(mask, {file, line});
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// Any subset of the lanes that could be active is a possible answer on a GPU; the least helpful one
// is the calling lane alone.
inline uint32_t __activemask() { return 1u << emu::lane_index(); }

// --- shuffles and votes -------------------------------------------------------------------------

namespace emu {

template <class T>
T shuffle(const char* name, uint32_t mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "as CUDA's overloads");
  warp_shuffle(name, mask, &value, sizeof(T), source, site);
  return value;
}

// The lane's segment of `width` lanes: its first lane.
inline unsigned segment_start(int width) {
  return lane_index() & ~static_cast<unsigned>(width - 1);
}

}  // namespace emu

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, FC_CALLER) {
  const unsigned from = emu::segment_start(width) + (source & (width - 1));
  return emu::shuffle("__shfl_sync", mask, value, from, {file, line});
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, FC_CALLER) {
  const unsigned lane = emu::lane_index(), from = lane ^ static_cast<unsigned>(lanes);
  const bool inside = from < emu::segment_start(width) + width;
  return emu::shuffle("__shfl_xor_sync", mask, value, inside ? from : lane, {file, line});
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32, FC_CALLER) {
  const unsigned lane = emu::lane_index(), from = lane + by;
  const bool inside = from < emu::segment_start(width) + width;
  return emu::shuffle("__shfl_down_sync", mask, value, inside ? from : lane, {file, line});
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, FC_CALLER) {
  const unsigned lane = emu::lane_index();
  const bool inside = lane >= emu::segment_start(width) + by;
  return emu::shuffle("__shfl_up_sync", mask, value, inside ? lane - by : lane, {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, FC_CALLER) {
  return emu::warp_vote("__ballot_sync", mask, predicate != 0, {file, line});
}
inline int __any_sync(uint32_t mask, int predicate, FC_CALLER) {
  return emu::warp_vote("__any_sync", mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, FC_CALLER) {
  return emu::warp_vote("__all_sync", mask, predicate != 0, {file, line}) == mask;
}

// --- atomics: integers only; a floating-point atomic would not be deterministic

// Not instrumented: atomics do not race with each other.
#define FC_ATOMIC_FUNCTION __attribute__((no_sanitize_thread))
#define FC_ATOMIC(name, builtin)                                       \
  template <class T>                                                   \
  FC_ATOMIC_FUNCTION T name(T* address, std::common_type_t<T> value) { \
    static_assert(std::is_integral_v<T>, "integers only");             \
    return builtin(address, value, __ATOMIC_RELAXED);                  \
  }
FC_ATOMIC(atomicAdd, __atomic_fetch_add)
FC_ATOMIC(atomicSub, __atomic_fetch_sub)
FC_ATOMIC(atomicAnd, __atomic_fetch_and)
FC_ATOMIC(atomicOr, __atomic_fetch_or)
FC_ATOMIC(atomicXor, __atomic_fetch_xor)
FC_ATOMIC(atomicExch, __atomic_exchange_n)
#undef FC_ATOMIC

template <class T>
FC_ATOMIC_FUNCTION T atomicCAS(T* address, std::common_type_t<T> expected,
                               std::common_type_t<T> desired) {
  static_assert(std::is_integral_v<T>, "integers only");
  T seen = expected;
  __atomic_compare_exchange_n(address, &seen, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return seen;
}
template <class T>
FC_ATOMIC_FUNCTION T atomicMax(T* address, std::common_type_t<T> value) {
  T seen = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (seen < value) {
    const T old = atomicCAS(address, seen, value);
    if (old == seen) break;
    seen = old;
  }
  return seen;
}
template <class T>
FC_ATOMIC_FUNCTION T atomicMin(T* address, std::common_type_t<T> value) {
  T seen = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < seen) {
    const T old = atomicCAS(address, seen, value);
    if (old == seen) break;
    seen = old;
  }
  return seen;
}

// --- loads and stores with a cache hint

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stwt(T* p, T value) {
  *p = value;
}

// --- arithmetic

// CUDA has these in the global namespace for every pair of arithmetic types.
template <class A, class B, class T = std::common_type_t<A, B>,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr T min(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return a != a ? b : static_cast<T>(b) < a ? b : a;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B, class T = std::common_type_t<A, B>,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr T max(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return a != a ? b : static_cast<T>(b) > a ? b : a;
  return static_cast<T>(b) > static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

using std::fabs;
using std::fma;
using std::fmaf;
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }

inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __popcll(uint64_t v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }

inline int __float_as_int(float v) { return emu::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return emu::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return emu::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return emu::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return emu::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return emu::bit_cast<double>(v); }

[[noreturn]] inline void __trap() { emu::fail("__trap()"); }
