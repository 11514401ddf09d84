// __half and __nv_bfloat16: storage and conversions, rounded to nearest even as the hardware does.
//
// Deliberately without arithmetic and without implicit conversions: on a GPU `a * b` of two __half
// rounds to fp16, and a kernel that means to sum in fp32 must say so. What compiles here says it.
#pragma once
#include <cstdint>
#include <cstring>

#include "cuda_types.h"

namespace emu {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  if ((bits & 0x7C00u) == 0x7C00u)  // infinity, NaN
    return bit_cast<float>(sign | rest | 0x7F800000u);
  // The exponent biases differ by 112; a product with a power of two is exact and also normalises
  // subnormals.
  return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(rest) * 0x1p112f) | sign);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFF;          // CUDA's only NaN
  if (magnitude >= 0x477FF000u) return sign | 0x7C00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                       // below 2^-14: subnormal
    // Adding 0.5 leaves 10 - 24 = the subnormals' last place, and the adder rounds to even.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(bit_cast<uint32_t>(shifted) - 0x3F000000u);
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xFFFu + odd) >> 13);
}

inline float bfloat16_to_float(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace emu

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float v) : bits(emu::float_to_half(v)) {}
  explicit operator float() const { return emu::half_to_float(bits); }
};

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) : bits(emu::float_to_bfloat16(v)) {}
  explicit operator float() const { return emu::bfloat16_to_float(bits); }
};

struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;

// --- CUDA's names -------------------------------------------------------------------------------

inline float __half2float(__half v) { return emu::half_to_float(v.bits); }
inline __half __float2half_rn(float v) { return __half(v); }
inline __half __float2half(float v) { return __half(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return emu::bfloat16_to_float(v.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }

inline uint16_t __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(uint16_t bits) { return emu::bit_cast<__half>(bits); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  return emu::bit_cast<__nv_bfloat16>(bits);
}

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }

inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
