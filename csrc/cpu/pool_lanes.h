// One vector of a pooling: the update of a maximum, powers, and the byte indices beside it.
#pragma once
#include "pool.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {

template <class A>
using vec_t = typename Simd<A>::vec;
template <class A>
using mask_t = typename Simd<A>::mask;
template <class A>
struct Lane;
template <>
struct Lane<float> {
  using type = int32_t;
};
template <>
struct Lane<double> {
  using type = int64_t;
};
// An index beside a lane of A.
template <class A>
using lane_t = typename Lane<A>::type;

template <class A>
FC_INLINE mask_t<A> load_lanes(const lane_t<A>* p) {
  mask_t<A> m;
  std::memcpy(&m, p, sizeof(m));
  return m;
}
template <class A>
FC_INLINE void store_lanes(lane_t<A>* p, mask_t<A> m) {
  std::memcpy(p, &m, sizeof(m));
}
template <class A>
FC_INLINE mask_t<A> lanes_of(int64_t a) {
  return mask_t<A>{} + static_cast<lane_t<A>>(a);
}

template <class A>
struct Bytes {
  typedef uint8_t vec __attribute__((vector_size(Simd<A>::lanes)));
};
template <class A>
FC_INLINE mask_t<A> load_bytes(const uint8_t* p) {
  typename Bytes<A>::vec b;
  std::memcpy(&b, p, sizeof(b));
  return __builtin_convertvector(b, mask_t<A>);
}
template <class A>
FC_INLINE void store_bytes(uint8_t* p, mask_t<A> m) {
  const auto b = __builtin_convertvector(m, typename Bytes<A>::vec);
  std::memcpy(p, &b, sizeof(b));
}

// A larger element or a NaN replaces the maximum: of ties the first stays, of NaNs the last.
template <class A>
FC_INLINE mask_t<A> takes_over(vec_t<A> v, vec_t<A> best) {
  return (mask_t<A>)(v > best) | (mask_t<A>)(v != v);
}
template <class A>
FC_INLINE vec_t<A> pick(mask_t<A> m, vec_t<A> a, vec_t<A> b) {
  return m ? a : b;
}

FC_INLINE float pow_of(float a, double p) { return __builtin_powf(a, static_cast<float>(p)); }
FC_INLINE double pow_of(double a, double p) { return __builtin_pow(a, p); }
FC_INLINE float sqrt_of(float a) { return __builtin_sqrtf(a); }
FC_INLINE double sqrt_of(double a) { return __builtin_sqrt(a); }

// v^p lane by lane; the integer powers that occur without a call.
template <class A>
FC_INLINE vec_t<A> vpow(vec_t<A> v, double p) {
  if (p == 2) return v * v;
  if (p == 1) return v;
  if (p == 3) return v * v * v;
  if (p == 0) return vsplat(A(1));
  vec_t<A> out;
  for (int i = 0; i < Simd<A>::lanes; ++i) out[i] = pow_of(static_cast<A>(v[i]), p);
  return out;
}
// v^(1/p)
template <class A>
FC_INLINE vec_t<A> vroot(vec_t<A> v, double p) {
  if (p == 1) return v;
  vec_t<A> out;
  if (p == 2) {
    for (int i = 0; i < Simd<A>::lanes; ++i) out[i] = sqrt_of(static_cast<A>(v[i]));
    return out;
  }
  for (int i = 0; i < Simd<A>::lanes; ++i) out[i] = pow_of(static_cast<A>(v[i]), 1 / p);
  return out;
}
// dy y^(1-p), and 0 where the window's sum is 0.
template <class A>
FC_INLINE vec_t<A> lp_slope(vec_t<A> dy, vec_t<A> y, double p) {
  const mask_t<A> zero = (mask_t<A>)(y == vec_t<A>{});
  vec_t<A> g = dy;
  if (p == 2)
    g = dy / y;
  else if (p != 1)
    g = dy * vpow<A>(y, 1 - p);
  return vkeep<A>(g, ~zero);
}

FC_INLINE float identity_of(PoolKind kind, float) {
  return kind == PoolKind::kMax ? -__builtin_inff() : 0.f;
}
FC_INLINE double identity_of(PoolKind kind, double) {
  return kind == PoolKind::kMax ? -__builtin_inf() : 0.;
}

}  // namespace fastconv::cpu::FC_ISA
