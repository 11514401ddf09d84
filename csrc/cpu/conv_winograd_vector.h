// Vectors of acc_t from and to storage of any dtype, and the square transpose.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class T>
using acc_vec = typename Simd<acc_t<T>>::vec;

template <class T>
struct Lanes {
  static constexpr int value = Simd<acc_t<T>>::lanes;
};

typedef uint16_t half_bits __attribute__((vector_size(FC_VEC_BYTES / 2), aligned(2), may_alias));
typedef uint32_t word_bits __attribute__((vector_size(FC_VEC_BYTES)));

FC_INLINE acc_vec<float> load_lanes(const float* p) { return vload(p); }
FC_INLINE acc_vec<double> load_lanes(const double* p) { return vload(p); }
FC_INLINE acc_vec<bf16> load_lanes(const bf16* p) {
  const half_bits h = *reinterpret_cast<const half_bits*>(p);
  return reinterpret_cast<acc_vec<bf16>>(__builtin_convertvector(h, word_bits) << 16);
}
FC_INLINE acc_vec<f16> load_lanes(const f16* p) {
  acc_vec<f16> v;
#if defined(__F16C__)
  float* lanes = reinterpret_cast<float*>(&v);
  for (int i = 0; i < Lanes<f16>::value; i += 8)
    _mm256_storeu_ps(lanes + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
#else
  for (int i = 0; i < Lanes<f16>::value; ++i) v[i] = to_acc(p[i]);
#endif
  return v;
}

FC_INLINE void store_lanes(float* p, acc_vec<float> v) { vstore(p, v); }
FC_INLINE void store_lanes(double* p, acc_vec<double> v) { vstore(p, v); }
FC_INLINE void store_lanes(bf16* p, acc_vec<bf16> v) {
  const word_bits bits = reinterpret_cast<word_bits>(v);
  const word_bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const word_bits quiet = (bits >> 16) | 0x40u;
  const word_bits nan = reinterpret_cast<word_bits>(v != v);
  const word_bits kept = (nan & quiet) | (~nan & rounded);
  *reinterpret_cast<half_bits*>(p) = __builtin_convertvector(kept, half_bits);
}
FC_INLINE void store_lanes(f16* p, acc_vec<f16> v) {
#if defined(__F16C__)
  const float* lanes = reinterpret_cast<const float*>(&v);
  for (int i = 0; i < Lanes<f16>::value; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(lanes + i), 0));
#else
  for (int i = 0; i < Lanes<f16>::value; ++i) from_acc(v[i], p + i);
#endif
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct IndicesTo : IndicesTo<N - 1, N - 1, I...> {};
template <int... I>
struct IndicesTo<0, I...> {
  using type = Indices<I...>;
};

// Lanes of a and b, numbered through; constant numbers become one or two shuffle instructions.
template <class Vec, int... I>
FC_INLINE Vec shuffle(Vec a, Vec b, Indices<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  typedef decltype(a < b) mask;
  return __builtin_shuffle(a, b, mask{I...});
#endif
}

// Exchanges the off-diagonal S x S blocks of rows S apart.
template <int S, class Vec, int... J>
FC_INLINE void exchange(Vec& a, Vec& b, Indices<J...>) {
  constexpr int L = sizeof...(J);
  const Vec low = shuffle(a, b, Indices<((J & S) ? L + J - S : J)...>{});
  b = shuffle(a, b, Indices<((J & S) ? L + J : J + S)...>{});
  a = low;
}

template <int S, class Vec, int L>
FC_INLINE void exchange_all(Vec (&rows)[L]) {
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], typename IndicesTo<L>::type{});
}

// rows[i][j] <-> rows[j][i], in log2(L) rounds.
template <class Vec, int L>
FC_INLINE void transpose(Vec (&rows)[L]) {
  if constexpr (L > 8) exchange_all<8>(rows);
  if constexpr (L > 4) exchange_all<4>(rows);
  if constexpr (L > 2) exchange_all<2>(rows);
  exchange_all<1>(rows);
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
