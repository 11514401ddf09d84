// Names for vectors of acc_t, and the square transpose.
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
