// The lines of pooling (pool_lines.h) for one instruction set.
//
// Every operation streams through lines that the first or second cache holds: its bytes are those
// of its operands, its FLOPs one per element and tap, and nothing here depends on threads. fp64 is
// compiled in the narrowest set alone and used beside every one: it is for checking gradients.
#include "pool_across.h"
#include "pool_pixels.h"
#include "pool_plane.h"

namespace fastconv::cpu::FC_ISA {
namespace {

// Loops over single elements are left to the compiler's vectoriser; no line aliases another but
// where it is the same one.
#define FC_OVER_LINE _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i)

template <class T>
void load_as(const void* x, acc_t<T>* out, int64_t n) {
  load_run(static_cast<const T*>(x), 1, out, n);
}
template <class T>
void store_as(const acc_t<T>* x, void* y, int64_t n) {
  store_run(x, static_cast<T*>(y), 1, n);
}
void load(DType type, const void* x, float* out, int64_t n) {
  if (type == DType::kFloat32) return load_as<float>(x, out, n);
  if (type == DType::kBFloat16) return load_as<bf16>(x, out, n);
  load_as<f16>(x, out, n);
}
void store(DType type, const float* x, void* y, int64_t n) {
  if (type == DType::kFloat32) return store_as<float>(x, y, n);
  if (type == DType::kBFloat16) return store_as<bf16>(x, y, n);
  store_as<f16>(x, y, n);
}
[[maybe_unused]] void load(DType, const void* x, double* out, int64_t n) {
  load_as<double>(x, out, n);
}
[[maybe_unused]] void store(DType, const double* x, void* y, int64_t n) {
  store_as<double>(x, y, n);
}

template <class A>
void split(const A* x, A* even, A* odd, int64_t n) {
  constexpr int64_t lanes = Simd<A>::lanes;
  for (int64_t i = 0; i < n; i += lanes) {
    if (i + lanes > n) {
      if (n < lanes) {
        for (; i < n; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
        return;
      }
      i = n - lanes;
    }
    const vec_t<A> a = vload(x + 2 * i), b = vload(x + 2 * i + lanes);
    vstore(even + i, veven<A>(a, b));
    vstore(odd + i, vodd<A>(a, b));
  }
}

template <class A>
void join(const A* even, const A* odd, A* x, int64_t n) {
  constexpr int lanes = Simd<A>::lanes;
  mask_t<A> low, high;
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + (i % 2) * lanes;
    high[i] = low[i] + lanes / 2;
  }
  for (int64_t i = 0; i < n; i += lanes) {
    if (i + lanes > n) {
      if (n < lanes) {
        for (; i < n; ++i) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
        return;
      }
      i = n - lanes;
    }
    const vec_t<A> a = vload(even + i), b = vload(odd + i);
    vstore(x + 2 * i, (vec_t<A>)__builtin_shuffle(a, b, low));
    vstore(x + 2 * i + lanes, (vec_t<A>)__builtin_shuffle(a, b, high));
  }
}

FC_INLINE float pow_of(float a, double p) { return __builtin_powf(a, static_cast<float>(p)); }
FC_INLINE double pow_of(double a, double p) { return __builtin_pow(a, p); }
FC_INLINE float sqrt_of(float a) { return __builtin_sqrtf(a); }
FC_INLINE double sqrt_of(double a) { return __builtin_sqrt(a); }

template <class A>
void raise(const A* x, double power, A* out, int64_t n) {
  if (power == 2) {
    FC_OVER_LINE out[i] = x[i] * x[i];
  } else if (power == 3) {
    FC_OVER_LINE out[i] = x[i] * x[i] * x[i];
  } else if (power == 0.5) {  // not pow, which makes +inf of -inf
    FC_OVER_LINE out[i] = sqrt_of(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = pow_of(x[i], power);
  }
}

template <class A>
void finish(const A* x, const A* count, A rows, A scale, double power, A* out, int64_t n) {
  if (power == 2) {
    FC_OVER_LINE out[i] = sqrt_of(x[i] / (rows * count[i]) * scale);
    return;
  }
  FC_OVER_LINE out[i] = x[i] / (rows * count[i]) * scale;
  if (power == 1) return;
  for (int64_t i = 0; i < n; ++i) out[i] = pow_of(out[i], 1 / power);
}

template <class A>
void share(const A* dy, const A* y, const A* count, A rows, A scale, double power, A* out,
           int64_t n) {
  constexpr int64_t lanes = Simd<A>::lanes;
  if (y == nullptr) {
    FC_OVER_LINE out[i] = dy[i] / (rows * count[i]);
    return;
  }
  // 0 where the sum is 0 and, for power 1 alone, where it is NaN: PyTorch's derivative of |sum|.
  // A division under a condition is left alone by the vectoriser.
  int64_t i = 0;
  if (power == 1 || power == 2)
    for (; i + lanes <= n; i += lanes) {
      const vec_t<A> v = vload(y + i), size = vsplat(rows) * vload(count + i);
      const vec_t<A> g = vload(dy + i) * vsplat(scale) / (power == 2 ? v * size : size);
      const vec_t<A> zero{};
      const mask_t<A> ordered = (mask_t<A>)(v < zero) | (mask_t<A>)(v > zero);
      vstore(out + i, vkeep<A>(g, power == 1 ? ordered : ~(mask_t<A>)(v == zero)));
    }
  for (; i < n; ++i) {
    const A size = rows * count[i], v = y[i];
    const A by = power == 1 ? size : power == 2 ? v * size : size / pow_of(v, 1 - power);
    out[i] = v == A(0) || (power == 1 && v != v) ? A(0) : dy[i] * scale / by;
  }
}

template <class A>
void fill(A value, A* out, int64_t n) {
  FC_OVER_LINE out[i] = value;
}

template <class A>
void chain(const A* x, double power, A* dx, int64_t n) {
  if (power == 2) {
    FC_OVER_LINE dx[i] *= x[i];
  } else if (power == 3) {
    FC_OVER_LINE dx[i] *= x[i] * x[i];
  } else {
    for (int64_t i = 0; i < n; ++i) dx[i] *= pow_of(x[i], power - 1);
  }
}

template <class A>
void widen(const uint8_t* bytes, lane_t<A>* out, int64_t n) {
  FC_OVER_LINE out[i] = bytes[i];
}
template <class A>
void narrow(const lane_t<A>* x, uint8_t* bytes, int64_t n) {
  FC_OVER_LINE bytes[i] = static_cast<uint8_t>(x[i]);
}

// Philox on 64-bit lanes, of which only the low halves count: one multiplication then gives both
// halves of a product, and what is shifted out of sight never has to be masked off.
constexpr uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;  // of ../common/philox.h
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
typedef uint64_t Words __attribute__((vector_size(FC_VEC_BYTES)));
constexpr int kWords = FC_VEC_BYTES / 8;

FC_INLINE Words product(Words a, uint32_t b) {
  Words out;
#if defined(__AVX2__) && !defined(__clang__)
  typedef int Eight __attribute__((vector_size(32)));
  const Eight factor = Eight{} + static_cast<int>(b);
  for (int i = 0; i < FC_VEC_BYTES; i += 32) {
    Eight part;
    std::memcpy(&part, reinterpret_cast<const char*>(&a) + i, 32);
    const auto wide = __builtin_ia32_pmuludq256(part, factor);
    std::memcpy(reinterpret_cast<char*>(&out) + i, &wide, 32);
  }
#elif defined(__SSE2__) && !defined(__clang__)
  typedef int Four __attribute__((vector_size(16)));
  out = (Words)__builtin_ia32_pmuludq128((Four)a, Four{} + static_cast<int>(b));
#else
  out = (a & 0xffffffffu) * static_cast<uint64_t>(b);
#endif
  return out;
}

struct Draws {
  Words word0, word1;
};
FC_INLINE Draws philox_words(uint64_t seed, Words counter) {
  Words c0 = counter, c1 = counter >> 32, c2{}, c3{};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Words a = product(c0, kFactor0), b = product(c2, kFactor1);
    c0 = (b >> 32) ^ c1 ^ k0;
    c2 = (a >> 32) ^ c3 ^ k1;
    c1 = b, c3 = a;
    k0 += kWeyl0, k1 += kWeyl1;
  }
  return {c0 & 0xffffffffu, c1 & 0xffffffffu};
}

FC_INLINE void to_uniform(uint64_t word0, uint64_t, float* u) {
  *u = static_cast<float>(static_cast<int32_t>(word0 >> 8)) * 0x1p-24f;
}
FC_INLINE void to_uniform(uint64_t word0, uint64_t word1, double* u) {
  *u = static_cast<double>(static_cast<int64_t>((word1 << 32 | word0) >> 11)) * 0x1p-53;
}

template <class A>
void uniform(uint64_t seed, uint64_t first, uint64_t step, A* out, int64_t n) {
  Words counter;
  for (int i = 0; i < kWords; ++i) counter[i] = first + i * step;
  for (int64_t i = 0; i < n; i += kWords, counter += kWords * step) {
    const Draws d = philox_words(seed, counter);
    uint64_t word0[kWords], word1[kWords];
    A u[kWords];
    std::memcpy(word0, &d.word0, sizeof(word0));
    std::memcpy(word1, &d.word1, sizeof(word1));
    for (int j = 0; j < kWords; ++j) to_uniform(word0[j], word1[j], u + j);
    if (i + kWords <= n)
      std::memcpy(out + i, u, sizeof(u));
    else
      for (int j = 0; i + j < n; ++j) out[i + j] = u[j];
  }
}

#define FC_ACROSS(K)                                                             \
  {across<A, Step::K, 2, 1>, across<A, Step::K, 3, 1>, across<A, Step::K, 2, 2>, \
   across<A, Step::K, 3, 2>}
#define FC_PLANE(K) {plane<A, Step::K, 2, 2>, plane<A, Step::K, 3, 1>, plane<A, Step::K, 3, 2>}
#define FC_PIXELS(K) {pixels<A, Step::K, 2, 2>, pixels<A, Step::K, 3, 1>, pixels<A, Step::K, 3, 2>}
#define FC_DOWN(K) {down<A, Step::K, 2>, down<A, Step::K, 3>, down<A, Step::K, 0>}

template <class A>
constexpr PoolLines<A> all_lines() {
  return {
      Simd<A>::lanes,
      {reduce<A, Reduce::kMax>, reduce<A, Reduce::kMaxTap>, reduce<A, Reduce::kMaxLine>,
       reduce<A, Reduce::kSum>, reduce<A, Reduce::kSquares>, reduce<A, Reduce::kDraw>,
       reduce<A, Reduce::kMean>, reduce<A, Reduce::kSend>},
      {slide<A, Reduce::kMax>, slide<A, Reduce::kMaxTap>, nullptr, slide<A, Reduce::kSum>,
       slide<A, Reduce::kSquares>, nullptr, nullptr, nullptr},
      {nullptr, strip_max<A>, nullptr, strip_sum<A, Reduce::kSum>, strip_sum<A, Reduce::kSquares>,
       nullptr, nullptr, nullptr},
      {FC_ACROSS(kMax), FC_ACROSS(kMaxTap), FC_ACROSS(kMaxExact), FC_ACROSS(kSum), FC_ACROSS(kLp)},
      {FC_PLANE(kMax), {}, {}, FC_PLANE(kSum), FC_PLANE(kLp)},
      {FC_PIXELS(kMax), {}, {}, FC_PIXELS(kSum), FC_PIXELS(kLp)},
      {FC_DOWN(kMax), FC_DOWN(kMaxTap), FC_DOWN(kMaxExact), FC_DOWN(kSum), FC_DOWN(kLp)},
      {{send<A, 2, 0>, send<A, 2, 1>}, {send<A, 3, 0>, send<A, 3, 1>}},
      load,
      store,
      split<A>,
      join<A>,
      raise<A>,
      finish<A>,
      share<A>,
      chain<A>,
      fill<A>,
      widen<A>,
      narrow<A>,
      uniform<A>};
}

}  // namespace

extern const PoolLines<float> pool_lines;
const PoolLines<float> pool_lines = all_lines<float>();
#if FC_VEC_BYTES == 16
extern const PoolLines<double> pool_lines_fp64;
const PoolLines<double> pool_lines_fp64 = all_lines<double>();
#endif

}  // namespace fastconv::cpu::FC_ISA
