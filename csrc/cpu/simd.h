// Vectors of the instruction set that this translation unit is compiled for (FC_ISA, a namespace
// name, and FC_VEC_BYTES come from the build). Written with GCC/Clang vector extensions, so that
// one source serves every set and the wide paths can be tested on narrower machines.
//
// Only *_isa.cpp files include this. They may include <cstdint> and <cstring>, no other standard
// header with inline code, and keep everything in this namespace: an inline function shared with
// another translation unit could be kept by the linker in its AVX-512 form.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#if !defined(FC_ISA) || !defined(FC_VEC_BYTES)
#error "simd.h belongs to files compiled once per instruction set"
#endif
#define FC_INLINE inline __attribute__((always_inline))

namespace fastconv::cpu::FC_ISA {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class T> struct Simd;
template <> struct Simd<float> {
  typedef float vec __attribute__((vector_size(FC_VEC_BYTES)));
  typedef float loose __attribute__((vector_size(FC_VEC_BYTES), aligned(4), may_alias));
  static constexpr int lanes = FC_VEC_BYTES / 4;
};
template <> struct Simd<double> {
  typedef double vec __attribute__((vector_size(FC_VEC_BYTES)));
  typedef double loose __attribute__((vector_size(FC_VEC_BYTES), aligned(8), may_alias));
  static constexpr int lanes = FC_VEC_BYTES / 8;
};

// acc_t of a storage type: 16-bit storage accumulates in fp32.
template <class T> struct Acc { using type = float; };
template <> struct Acc<double> { using type = double; };
template <class T> using acc_t = typename Acc<T>::type;

template <class T> FC_INLINE typename Simd<T>::vec vload(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::loose*>(p);
}
template <class T> FC_INLINE void vstore(T* p, typename Simd<T>::vec v) {
  *reinterpret_cast<typename Simd<T>::loose*>(p) = v;
}
template <class T> FC_INLINE typename Simd<T>::vec vsplat(T a) {
  return a - typename Simd<T>::vec{};  // scalar op vector broadcasts
}

FC_INLINE float to_acc(float v) { return v; }
FC_INLINE double to_acc(double v) { return v; }
FC_INLINE float to_acc(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
FC_INLINE float to_acc(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  // Shift the exponent into place by a multiplication, which also normalises subnormals.
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  float f;
  if (magnitude >= (0x7c00u << 13)) {
    magnitude |= 0x7f800000u;  // infinity and NaN keep an all-ones exponent
    std::memcpy(&f, &magnitude, 4);
  } else {
    std::memcpy(&f, &magnitude, 4);
    f *= 0x1p112f;
  }
  uint32_t out;
  std::memcpy(&out, &f, 4);
  out |= sign;
  std::memcpy(&f, &out, 4);
  return f;
#endif
}

FC_INLINE void from_acc(float v, float* out) { *out = v; }
FC_INLINE void from_acc(double v, double* out) { *out = v; }
FC_INLINE void from_acc(float v, bf16* out) {  // round to nearest even; NaN stays quiet NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(v != v ? ((bits >> 16) | 0x40u) : rounded);
}
FC_INLINE void from_acc(float v, f16* out) {
#if defined(__F16C__)
  out->bits = static_cast<uint16_t>(_cvtss_sh(v, 0));
#else
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits >= 0x47800000u) {  // 65536 and above, infinity, NaN
    half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the subnormal's last bit
    float f;
    std::memcpy(&f, &bits, 4);
    f += 0.5f;
    uint32_t r;
    std::memcpy(&r, &f, 4);
    half = r - 0x3f000000u;
  } else {
    half = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
#endif
}

}  // namespace fastconv::cpu::FC_ISA
