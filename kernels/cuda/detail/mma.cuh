// Tensor-core products of one warp (mma.sync) and the loads that feed them (ldmatrix). All 32 lanes
// call each of these together.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "... mma.m16n8k8"); a 32-bit register holds two 16-bit elements, the lower column or row first:
//   16-bit  a[16][16] row-major:  a[0] (g, 2t)  a[1] (g+8, 2t)  a[2] (g, 2t+8)  a[3] (g+8, 2t+8)
//           b[16][8]:             b[0] (2t, g)  b[1] (2t+8, g)
//   TF32    a[16][8]:             a[0] (g, t)   a[1] (g+8, t)   a[2] (g, t+4)   a[3] (g+8, t+4)
//           b[8][8]:              b[0] (t, g)   b[1] (t+4, g)
//   both    d[16][8] fp32:        d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)
#pragma once
#include <type_traits>

#include "platform.cuh"

namespace fastconv::cuda {

// --- ldmatrix: 8 x 8 matrices of 16 bits
// ---------------------------------------------------------- Lanes 8m to 8m+7 give the addresses of
// the rows of matrix m: 16 bytes each, aligned to 16, in shared memory. r[m] is the lane's pair
// (row g, columns 2t and 2t+1) of matrix m; with _trans, of its transpose: (rows 2t and 2t+1,
// column g). So for row-major a[16][16] the four matrices are the quarters top left, bottom left,
// top right, bottom right; for b stored as [gemm_n][gemm_k] use the plain form, stored as
// [gemm_k][gemm_n] the transposed one. _x2 looks at the addresses of lanes 0 to 15 only.

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if defined(FC_EMULATE)
  emu::load_matrix(r, 4, false, row, {__FILE__, __LINE__});
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#if defined(FC_EMULATE)
  emu::load_matrix(r, 4, true, row, {__FILE__, __LINE__});
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
#if defined(FC_EMULATE)
  emu::load_matrix(r, 2, false, row, {__FILE__, __LINE__});
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(from)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
#if defined(FC_EMULATE)
  emu::load_matrix(r, 2, true, row, {__FILE__, __LINE__});
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(from)
               : "memory");
#endif
}

// --- mma.sync: d += a * b
// -------------------------------------------------------------------------

// T: __half or __nv_bfloat16. Products are exact; the sum is fp32.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>, "the 16-bit operand types");
#if defined(FC_EMULATE)
  emu::multiply_accumulate(kHalf ? emu::Operand::kHalf : emu::Operand::kBfloat16, d, a, b,
                           {__FILE__, __LINE__});
#else
  if constexpr (kHalf)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Operands are fp32 bit patterns of which the top 19 bits count: round with to_tf32 first, or the
// hardware cuts off.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
#if defined(FC_EMULATE)
  emu::multiply_accumulate(emu::Operand::kTf32, d, a, b, {__FILE__, __LINE__});
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// To the 10-bit mantissa of TF32, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#if defined(FC_EMULATE)
  return emu::round_to_tf32(value);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

// v = big + small, each of TF32's 11 significant bits, to within 2^-22 |v|. `big` comes as v.
template <int COUNT>
__device__ __forceinline__ void split_tf32(uint32_t (&big)[COUNT], uint32_t (&small)[COUNT]) {
#pragma unroll
  for (int e = 0; e < COUNT; ++e) {
    const float v = __uint_as_float(big[e]);
    big[e] = to_tf32(v);
    small[e] = to_tf32(v - __uint_as_float(big[e]));
  }
}

}  // namespace fastconv::cuda
