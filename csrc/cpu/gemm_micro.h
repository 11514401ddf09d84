// The register tile of every matrix product on the CPU:
//   c[i][j] (+)= sum_k a[k*MR + i] * b[k*NR + j],  0 <= i < MR, 0 <= j < NR
// a and b are packed panels, k-major; c is row-major with leading dimension ldc. Rows of c are
// vectors: MR broadcasts against NV vectors. The tile fills the register file: MR*NV accumulators,
// NV operands and one broadcast.
#pragma once
#include "simd.h"

namespace fastconv::cpu::FC_ISA {

template <class T>
struct GemmTile {
  static constexpr int NV = 2;
  static constexpr int NR = NV * Simd<T>::lanes;
#if FC_VEC_BYTES == 64 && defined(__AVX512F__)
  static constexpr int MR = 14;  // 32 registers: 28 accumulators, 2 operands, a broadcast
#else
  static constexpr int MR = 6;  // 16 registers: 12 accumulators, 2 operands, a broadcast
#endif
};

template <class T, bool kAccumulate, int MR = GemmTile<T>::MR, int NV = GemmTile<T>::NV>
FC_INLINE void gemm_micro(int64_t gemm_k, const T* __restrict__ a, const T* __restrict__ b,
                          T* __restrict__ c, int64_t ldc) {
  using vec = typename Simd<T>::vec;
  constexpr int lanes = Simd<T>::lanes;
  constexpr int NR = NV * lanes;
  vec acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = kAccumulate ? vload(c + i * ldc + v * lanes) : vec{};
  for (int64_t k = 0; k < gemm_k; ++k) {
    vec bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = vload(b + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vec av = vsplat(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += av * bv[v];
    }
    a += MR;
    b += NR;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vstore(c + i * ldc + v * lanes, acc[i][v]);
}

constexpr int kRowPrefetch = 2;  // lines; 16 cost a quarter of the rate, 0 a few percent

// The same tile with the left operand read in place: row i of segment s starts at
// rows[s * rows_ld + i] and runs along gemm_k with unit stride, so that weights [K, C*R*S] or the
// channels of a pixel need no packing (6 pointers, one shared index: they fit the integer
// registers). All segments have the same length; b runs through them without a gap.
template <class T>
struct RowTile {
  const T* const* rows;
  int64_t rows_ld, segments, length;
  const T* const* next_rows;  // [MR]: what the next call will read, a hint
  const T* b;                 // [segments * length][NV * lanes]
  T* c;
  int64_t ldc;
  bool accumulate;
  const T* row_bias;  // [MR] or null, added after the sum
  const T* vec_bias;  // [NV * lanes] or null
};

template <class T, int MR, int NV>
FC_INLINE void gemm_rows(const RowTile<T>& t) {
  using vec = typename Simd<T>::vec;
  constexpr int lanes = Simd<T>::lanes;
  vec acc[MR][NV];
  T* c = t.c;
  const int64_t ldc = t.ldc;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = vec{};
  // c comes from L2 and is needed last; the next tile's rows start new streams, whose first lines
  // the hardware prefetcher would miss.
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + NV * lanes - 1, 1);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int line = 0; line < kRowPrefetch; ++line)
      __builtin_prefetch(t.next_rows[i] + line * (64 / sizeof(T)));
  const T* __restrict__ b = t.b;
  const int64_t length = t.length;
  const T* const* rows = t.rows;
  for (int64_t s = 0; s < t.segments; ++s, rows += t.rows_ld) {
    const T* a[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) a[i] = rows[i];
    for (int64_t k = 0; k < length; ++k) {
      vec bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = vload(b + v * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const vec av = vsplat(a[i][k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[i][v] += av * bv[v];
      }
      b += NV * lanes;
    }
  }
  if (t.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += vload(c + i * ldc + v * lanes);
  }
  if (t.row_bias) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += vsplat(t.row_bias[i]);
  }
  if (t.vec_bias) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += vload(t.vec_bias + v * lanes);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vstore(c + i * ldc + v * lanes, acc[i][v]);
}

}  // namespace fastconv::cpu::FC_ISA
