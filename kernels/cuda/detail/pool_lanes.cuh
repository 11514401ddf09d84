// Neighbouring elements in one register vector: 16-byte loads and stores (8 bytes where a quad of a
// 16-bit type is all that fits into the registers), and maxima with their taps beside them.
#pragma once
#include <cstring>
#include <type_traits>

#include "pool_values.cuh"

namespace fastconv::cuda {

template <class scalar_t, int VEC>
struct PoolLanes {
  static constexpr int kWords = VEC * static_cast<int>(sizeof(scalar_t)) / 4;
  uint32_t word[kWords];

  __device__ __forceinline__ void load(const scalar_t* from) {
    if constexpr (kWords == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    } else {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      word[0] = v.x, word[1] = v.y;
    }
  }
  __device__ __forceinline__ void store(scalar_t* to) const {
    if constexpr (kWords == 4)
      *reinterpret_cast<uint4*>(to) = uint4{word[0], word[1], word[2], word[3]};
    else
      *reinterpret_cast<uint2*>(to) = uint2{word[0], word[1]};
  }
  // i is known to the compiler.
  __device__ __forceinline__ float get(int i) const {
    if constexpr (sizeof(scalar_t) == 4) {
      return __uint_as_float(word[i]);
    } else if constexpr (std::is_same<scalar_t, __nv_bfloat16>::value) {
      return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
    } else {
      scalar_t pair[2];
      memcpy(pair, &word[i / 2], 4);
      return to_acc(pair[i % 2]);
    }
  }
  __device__ __forceinline__ void set(const float (&from)[VEC]) {
    scalar_t values[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) values[i] = from_acc<scalar_t>(from[i]);
    memcpy(word, values, sizeof(word));
  }
};

// All ones in the halves where v replaces best, see takes_over().
template <class scalar_t>
__device__ __forceinline__ uint32_t takes_over_mask(uint32_t v, uint32_t best) {
#if defined(FC_EMULATE)
  uint32_t mask = 0;
  for (int half = 0; half < 2; ++half) {
    const uint16_t a = static_cast<uint16_t>(v >> 16 * half);
    const uint16_t b = static_cast<uint16_t>(best >> 16 * half);
    scalar_t x, y;
    memcpy(&x, &a, 2);
    memcpy(&y, &b, 2);
    if (takes_over(to_acc(x), to_acc(y))) mask |= 0xffffu << 16 * half;
  }
  return mask;
#else
  using pair_t = std::conditional_t<std::is_same<scalar_t, __half>::value, __half2, __nv_bfloat162>;
  pair_t a, b;
  memcpy(&a, &v, 4);
  memcpy(&b, &best, 4);
  return __hgt2_mask(a, b) | __hneu2_mask(a, a);
#endif
}

// The maxima of VEC windows and their taps: 16-bit types in pairs, taps below 2^16.
template <class scalar_t, int VEC>
struct PoolMaxLanes {
  using Lanes = PoolLanes<scalar_t, VEC>;
  static constexpr bool kPairs = sizeof(scalar_t) == 2;
  static constexpr int kMaxTap = kPairs ? 0xffff : INT32_MAX;
  Lanes best;
  uint32_t taps[Lanes::kWords];

  __device__ __forceinline__ void start(int first_tap) {
    const uint32_t infinity = !kPairs                                        ? 0xff800000u
                              : std::is_same<scalar_t, __nv_bfloat16>::value ? 0xff80ff80u
                                                                             : 0xfc00fc00u;
#pragma unroll
    for (int i = 0; i < Lanes::kWords; ++i) {
      best.word[i] = infinity;
      taps[i] = static_cast<uint32_t>(first_tap) * (kPairs ? 0x10001u : 1u);
    }
  }
  // v counts only if it is real.
  __device__ __forceinline__ void take(const Lanes& v, int tap, bool real) {
    const uint32_t mine = static_cast<uint32_t>(tap) * (kPairs ? 0x10001u : 1u);
#pragma unroll
    for (int i = 0; i < Lanes::kWords; ++i) {
      if constexpr (kPairs) {
        const uint32_t mask =
            takes_over_mask<scalar_t>(v.word[i], best.word[i]) & (real ? 0xffffffffu : 0u);
        best.word[i] = (v.word[i] & mask) | (best.word[i] & ~mask);
        taps[i] = (mine & mask) | (taps[i] & ~mask);
      } else {
        const bool over =
            real && takes_over(__uint_as_float(v.word[i]), __uint_as_float(best.word[i]));
        best.word[i] = over ? v.word[i] : best.word[i];
        taps[i] = over ? mine : taps[i];
      }
    }
  }
  __device__ __forceinline__ int tap(int i) const {
    return static_cast<int>(kPairs ? taps[i / 2] >> 16 * (i % 2) & 0xffffu : taps[i]);
  }
};

// Four or eight bytes at once. at is aligned to as many.
template <int VEC, class F>
__device__ __forceinline__ void store_bytes(uint8_t* at, const F& byte) {
  uint32_t word[VEC / 4];
#pragma unroll
  for (int w = 0; w < VEC / 4; ++w)
    word[w] = static_cast<uint32_t>(byte(4 * w)) | static_cast<uint32_t>(byte(4 * w + 1)) << 8 |
              static_cast<uint32_t>(byte(4 * w + 2)) << 16 |
              static_cast<uint32_t>(byte(4 * w + 3)) << 24;
  if constexpr (VEC == 8)
    *reinterpret_cast<uint2*>(at) = uint2{word[0], word[1]};
  else
    *reinterpret_cast<uint32_t*>(at) = word[0];
}

// Their loads.
template <int VEC>
struct PoolBytes {
  uint32_t word[VEC / 4];

  __device__ __forceinline__ void load(const uint8_t* at) {
    if constexpr (VEC == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(at);
      word[0] = v.x, word[1] = v.y;
    } else {
      word[0] = *reinterpret_cast<const uint32_t*>(at);
    }
  }
  __device__ __forceinline__ uint32_t get(int i) const {
    return word[i / 4] >> 8 * (i % 4) & 0xffu;
  }
};

// Pairs of int64. at is aligned to 16 bytes.
template <int VEC, class F>
__device__ __forceinline__ void store_longs(int64_t* at, const F& value) {
#pragma unroll
  for (int i = 0; i < VEC; i += 2) {
    const longlong2 pair = {value(i), value(i + 1)};
    *reinterpret_cast<longlong2*>(at + i) = pair;
  }
}

// sum / counted, rounded as a division is, with inverse = 1 / counted; the last step is Markstein's
// ("Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
__device__ __forceinline__ float divide(float sum, float counted, float inverse) {
  const float quotient = sum * inverse;
  const float better = fmaf(fmaf(-quotient, counted, sum), inverse, quotient);
  return better == better ? better : quotient;  // NaN where the quotient is infinite
}

}  // namespace fastconv::cuda
