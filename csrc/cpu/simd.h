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

#if !defined(FC_ISA) || !defined(FC_VEC_BYTES)
#error "simd.h belongs to files compiled once per instruction set"
#endif
#define FC_INLINE inline __attribute__((always_inline))
// What isa.h says of fp64: FC_FP64(f) is nullptr where it has no kernels.
#if FC_VEC_BYTES < 64
#define FC_FP64(...) __VA_ARGS__
#else
#define FC_FP64(...) nullptr
#endif
#if defined(__GNUC__) && !defined(__clang__)
// Vectors wider than the target's registers are returned here, but only by inlined functions.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace fastconv::cpu::FC_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float vec __attribute__((vector_size(FC_VEC_BYTES)));
  typedef float loose __attribute__((vector_size(FC_VEC_BYTES), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(FC_VEC_BYTES)));
  static constexpr int lanes = FC_VEC_BYTES / 4;
};
template <>
struct Simd<double> {
  typedef double vec __attribute__((vector_size(FC_VEC_BYTES)));
  typedef double loose __attribute__((vector_size(FC_VEC_BYTES), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(FC_VEC_BYTES)));
  static constexpr int lanes = FC_VEC_BYTES / 8;
};

// acc_t of a storage type: 16-bit storage accumulates in fp32.
template <class T>
struct Acc {
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};
template <class T>
using acc_t = typename Acc<T>::type;

template <class T>
FC_INLINE typename Simd<T>::vec vload(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::loose*>(p);
}
template <class T>
FC_INLINE void vstore(T* p, typename Simd<T>::vec v) {
  *reinterpret_cast<typename Simd<T>::loose*>(p) = v;
}
template <class T>
FC_INLINE typename Simd<T>::vec vsplat(T a) {
  return a - typename Simd<T>::vec{};  // scalar op vector broadcasts
}

FC_INLINE float to_acc(float v) { return v; }
FC_INLINE double to_acc(double v) { return v; }
#if defined(__F16C__)
// The operands of the compiler's own conversions: <immintrin.h>, which has names for them, takes
// 0.7 s to parse, in every file.
typedef short Halves __attribute__((vector_size(16)));
typedef float Quarter __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
#endif

FC_INLINE float to_acc(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
FC_INLINE float to_acc(f16 v) {
#if defined(__F16C__)
  const Halves halves = {static_cast<short>(v.bits)};
  return __builtin_ia32_vcvtph2ps(halves)[0];
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
  const Quarter quarter = {v};
  out->bits = static_cast<uint16_t>(__builtin_ia32_vcvtps2ph(quarter, 0)[0]);
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

// Lanes below n set.
template <class A>
FC_INLINE typename Simd<A>::mask vfirst(int n) {
  typename Simd<A>::mask m;
  for (int i = 0; i < Simd<A>::lanes; ++i) m[i] = i < n ? -1 : 0;
  return m;
}
// v where the mask is set, else 0, whatever v holds.
template <class A>
FC_INLINE typename Simd<A>::vec vkeep(typename Simd<A>::vec v, typename Simd<A>::mask m) {
  return (typename Simd<A>::vec)((typename Simd<A>::mask)v & m);
}

// Set where either is NaN.
template <class A>
FC_INLINE typename Simd<A>::mask vunordered(typename Simd<A>::vec a, typename Simd<A>::vec b) {
  return (typename Simd<A>::mask)(a != a) | (typename Simd<A>::mask)(b != b);
}
#if FC_VEC_BYTES == 32 && defined(__AVX2__) && !defined(__clang__)
template <>
FC_INLINE Simd<float>::mask vunordered<float>(Simd<float>::vec a, Simd<float>::vec b) {
  return (Simd<float>::mask)__builtin_ia32_cmpps256(a, b, 3);
}
#endif

FC_INLINE Simd<float>::vec vsqrt(Simd<float>::vec v) {
#if FC_VEC_BYTES >= 32 && defined(__AVX2__) && !defined(__clang__)
  typedef float Part __attribute__((vector_size(32)));
  for (int i = 0; i < Simd<float>::lanes; i += 8) {
    Part part;
    std::memcpy(&part, reinterpret_cast<float*>(&v) + i, 32);
    part = __builtin_ia32_sqrtps256(part);
    std::memcpy(reinterpret_cast<float*>(&v) + i, &part, 32);
  }
#elif FC_VEC_BYTES == 16 && defined(__SSE2__) && !defined(__clang__)
  v = __builtin_ia32_sqrtps(v);
#else
  for (int i = 0; i < Simd<float>::lanes; ++i) v[i] = __builtin_sqrtf(v[i]);
#endif
  return v;
}
FC_INLINE Simd<double>::vec vsqrt(Simd<double>::vec v) {
  for (int i = 0; i < Simd<double>::lanes; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

// One vector of acc_t from storage, and back (rounding to nearest even).
FC_INLINE Simd<float>::vec vload_acc(const float* p) { return vload(p); }
FC_INLINE Simd<double>::vec vload_acc(const double* p) { return vload(p); }
FC_INLINE void vstore_acc(float* p, Simd<float>::vec v) { vstore(p, v); }
FC_INLINE void vstore_acc(double* p, Simd<double>::vec v) { vstore(p, v); }

FC_INLINE Simd<float>::vec vload_acc(const bf16* p) {
  typedef uint16_t half __attribute__((vector_size(FC_VEC_BYTES / 2), aligned(2), may_alias));
  typedef uint32_t bits __attribute__((vector_size(FC_VEC_BYTES)));
  const bits wide = __builtin_convertvector(*reinterpret_cast<const half*>(p), bits) << 16;
  return (Simd<float>::vec)wide;
}
FC_INLINE void vstore_acc(bf16* p, Simd<float>::vec v) {
  typedef uint16_t half __attribute__((vector_size(FC_VEC_BYTES / 2), aligned(2), may_alias));
  typedef uint32_t bits __attribute__((vector_size(FC_VEC_BYTES)));
  const bits b = (bits)v;
  const bits nan = (bits)(v != v);
  const bits rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const bits quiet = (b >> 16) | 0x40u;
  *reinterpret_cast<half*>(p) = __builtin_convertvector((quiet & nan) | (rounded & ~nan), half);
}

#if defined(__F16C__)
FC_INLINE Simd<float>::vec vload_acc(const f16* p) {
  Simd<float>::vec out;
  for (int i = 0; i < Simd<float>::lanes; i += 8) {
    Halves halves;
    std::memcpy(&halves, p + i, 16);
    const Eight part = __builtin_ia32_vcvtph2ps256(halves);
    std::memcpy(reinterpret_cast<float*>(&out) + i, &part, 32);
  }
  return out;
}
FC_INLINE void vstore_acc(f16* p, Simd<float>::vec v) {
  for (int i = 0; i < Simd<float>::lanes; i += 8) {
    Eight part;
    std::memcpy(&part, reinterpret_cast<float*>(&v) + i, 32);
    const Halves halves = __builtin_ia32_vcvtps2ph256(part, 0);
    std::memcpy(p + i, &halves, 16);
  }
}
#else
FC_INLINE Simd<float>::vec vload_acc(const f16* p) {
  Simd<float>::vec out;
  for (int i = 0; i < Simd<float>::lanes; ++i) out[i] = to_acc(p[i]);
  return out;
}
FC_INLINE void vstore_acc(f16* p, Simd<float>::vec v) {
  for (int i = 0; i < Simd<float>::lanes; ++i) from_acc(v[i], p + i);
}
#endif

// Even and odd lanes of two vectors.
template <class A>
FC_INLINE typename Simd<A>::vec veven(typename Simd<A>::vec a, typename Simd<A>::vec b) {
  typename Simd<A>::mask m;
  for (int i = 0; i < Simd<A>::lanes; ++i) m[i] = 2 * i;
  return __builtin_shuffle(a, b, m);
}
template <class A>
FC_INLINE typename Simd<A>::vec vodd(typename Simd<A>::vec a, typename Simd<A>::vec b) {
  typename Simd<A>::mask m;
  for (int i = 0; i < Simd<A>::lanes; ++i) m[i] = 2 * i + 1;
  return __builtin_shuffle(a, b, m);
}

// out[i] = the sum of the lanes of vector i, i < n; pairwise, the same order for every i.
template <class A>
FC_INLINE void sum_lanes(const A* vectors, int64_t n, A* out) {
  constexpr int lanes = Simd<A>::lanes;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    typename Simd<A>::vec v[lanes];
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) v[l] = vload(vectors + (i + l) * lanes);
#pragma GCC unroll 4
    for (int count = lanes / 2; count > 0; count /= 2)
#pragma GCC unroll 16
      for (int l = 0; l < count; ++l)
        v[l] = veven<A>(v[2 * l], v[2 * l + 1]) + vodd<A>(v[2 * l], v[2 * l + 1]);
    vstore(out + i, v[0]);
  }
  for (; i < n; ++i) {
    A v[lanes];
    std::memcpy(v, vectors + i * lanes, sizeof(v));
    for (int count = lanes / 2; count > 0; count /= 2)
      for (int l = 0; l < count; ++l) v[l] = v[2 * l] + v[2 * l + 1];
    out[i] = v[0];
  }
}

// Four elements at a time, for rows shorter than a vector.
FC_INLINE bool copy_quads(const float* src, float* dst, int64_t n) {
  if (n < 4 || Simd<float>::lanes == 4) return false;
  std::memcpy(dst, src, 16);
  if (n > 8) std::memcpy(dst + 4, src + 4, 16);
  if (n > 12) std::memcpy(dst + 8, src + 8, 16);
  std::memcpy(dst + n - 4, src + n - 4, 16);
  return true;
}
template <class S, class D>
FC_INLINE bool copy_quads(const S*, D*, int64_t) {
  return false;
}

// Copies n elements, storage to acc_t and back; strides in elements, the inner one of acc_t is 1.
// The last vector of a run overlaps the one before it. Nothing outside the run is touched.
template <class T>
FC_INLINE void load_run(const T* src, int64_t stride, acc_t<T>* dst, int64_t n) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  int64_t i = 0;
  if (stride == 1) {
    if (n >= lanes) {
      for (; i + lanes <= n; i += lanes) vstore(dst + i, vload_acc(src + i));
      if (i < n) vstore(dst + n - lanes, vload_acc(src + n - lanes));
      return;
    }
    if (copy_quads(src, dst, n)) return;
    for (; i < n; ++i) dst[i] = to_acc(src[i]);
    return;
  }
  if (stride == 2) {
    for (; i + lanes < n; i += lanes)
      vstore(dst + i, veven<A>(vload_acc(src + 2 * i), vload_acc(src + 2 * i + lanes)));
    for (; i < n; ++i) dst[i] = to_acc(src[2 * i]);
    return;
  }
  for (; i < n; ++i) dst[i] = to_acc(src[i * stride]);
}
template <class T>
FC_INLINE void store_run(const acc_t<T>* src, T* dst, int64_t stride, int64_t n) {
  constexpr int lanes = Simd<acc_t<T>>::lanes;
  int64_t i = 0;
  if (stride == 1) {
    if (n >= lanes) {
      for (; i + lanes <= n; i += lanes) vstore_acc(dst + i, vload(src + i));
      if (i < n) vstore_acc(dst + n - lanes, vload(src + n - lanes));
      return;
    }
    if (copy_quads(src, dst, n)) return;
    for (; i < n; ++i) from_acc(src[i], dst + i);
    return;
  }
  for (; i < n; ++i) from_acc(src[i], dst + i * stride);
}

}  // namespace fastconv::cpu::FC_ISA
