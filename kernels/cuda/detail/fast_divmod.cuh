// Division by a number that is known at launch only: one high multiply, one add, one shift, where
// the hardware's own 32-bit division takes some twenty instructions.
//
// With s = ceil(log2 d) and m = floor(2^32 (2^s - d) / d) + 1, n / d = (hi32(n m) + n) >> s for
// every n < 2^31: above that the sum could carry out of 32 bits. Source: Granlund and Montgomery,
// "Division by Invariant Integers using Multiplication", PLDI 1994, section 4.
#pragma once
#include <cstdint>

#include "platform.cuh"

namespace fastconv::cuda {

struct FastDivmod {
  uint32_t divisor, magic, shift;

  FastDivmod() = default;  // plain data, so that it can be part of a kernel's parameters

  // 1 <= d < 2^31.
  explicit FastDivmod(uint32_t d) : divisor(d), magic(0), shift(0) {
    while ((uint64_t{1} << shift) < d) ++shift;
    magic = static_cast<uint32_t>(((((uint64_t{1} << shift) - d) << 32) / d) + 1);
  }

  // n < 2^31.
  __host__ __device__ __forceinline__ uint32_t div(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * magic) >> 32);
    return (high + n) >> shift;
  }

  // Quotient; the remainder goes to `remainder`.
  __host__ __device__ __forceinline__ uint32_t divmod(uint32_t n, uint32_t& remainder) const {
    const uint32_t quotient = div(n);
    remainder = n - quotient * divisor;
    return quotient;
  }
};

// The same for 64 bits: n < 2^63, 1 <= d < 2^63.
struct FastDivmod64 {
  uint64_t divisor, magic;
  uint32_t shift;

  FastDivmod64() = default;

  explicit FastDivmod64(uint64_t d) : divisor(d), magic(0), shift(0) {
    while ((uint64_t{1} << shift) < d) ++shift;
    const unsigned __int128 rest = (uint64_t{1} << shift) - d;
    magic = static_cast<uint64_t>((rest << 64) / d) + 1;
  }

  __device__ __forceinline__ uint64_t div(uint64_t n) const {
    return (__umul64hi(n, magic) + n) >> shift;
  }

  __device__ __forceinline__ uint64_t divmod(uint64_t n, uint64_t& remainder) const {
    const uint64_t quotient = div(n);
    remainder = n - quotient * divisor;
    return quotient;
  }
};

}  // namespace fastconv::cuda
