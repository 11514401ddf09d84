// Data movement of the im2col packers: converting copies, and transposes of blocks whose rows are
// contiguous. Included by *_isa.cpp files only; everything has internal linkage.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A, class B>
struct SameType {
  static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
  static constexpr bool value = true;
};

template <int kValue>
struct Width {
  static constexpr int value = kValue;
};

// dst[k*dst_step + i] = src[k*src_step + i] for k < count, i < kLen: a narrow column block, with
// the copy width known to the compiler.
template <class T, int kLen>
FC_INLINE void copy_block(T* dst, int64_t dst_step, const T* src, int64_t src_step, int64_t count) {
  for (int64_t k = 0; k < count; ++k, dst += dst_step, src += src_step)
    std::memcpy(dst, src, kLen * sizeof(T));
}

template <class T>
FC_INLINE void zero_columns(T* dst, int64_t dst_step, int64_t count, int64_t len) {
  for (int64_t k = 0; k < count; ++k, dst += dst_step)
    for (int64_t i = 0; i < len; ++i) dst[i] = T(0);
}

#if defined(__AVX2__)
// Every second element of 15 or 16 consecutive floats; the last element may be the tensor's last,
// so the second load starts one element early.
FC_INLINE void copy_even8(float* dst, const float* src) {
  const __m256 low = _mm256_loadu_ps(src), high = _mm256_loadu_ps(src + 7);
  // lanes: low 0 2 | 4 6, high 1 3 (= 8 10) | 5 7 (= 12 14)
  const __m256 shifted = _mm256_permute_ps(high, 0xF5);  // odd elements doubled: 1 1 3 3
  const __m256 mixed = _mm256_shuffle_ps(low, shifted, 0x88);
  _mm256_storeu_ps(dst, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xD8)));
}
#endif

// dst[k*dst_step + i] = src[k*src_step + i*stride], k < count, i < len.
template <class T, class S>
void copy_columns(T* dst, int64_t dst_step, const S* src, int64_t src_step, int64_t count,
                  int64_t len, int64_t stride) {
  if constexpr (SameType<T, S>::value) {
    if (stride == 1) {
      constexpr int kWide = 64 / sizeof(T);
      int64_t i = 0;
      for (; i + kWide <= len; i += kWide)
        copy_block<T, kWide>(dst + i, dst_step, src + i, src_step, count);
      // The rest in at most two overlapping blocks of one power of two.
      const int64_t rest = len - i;
      const auto pair = [&](auto width) {
        constexpr int w = decltype(width)::value;
        copy_block<T, w>(dst + i, dst_step, src + i, src_step, count);
        if (rest > w) copy_block<T, w>(dst + len - w, dst_step, src + len - w, src_step, count);
      };
      if (rest >= 8)
        pair(Width<8>{});
      else if (rest >= 4)
        pair(Width<4>{});
      else if (rest >= 2)
        pair(Width<2>{});
      else if (rest == 1)
        pair(Width<1>{});
      return;
    }
  }
#if defined(__AVX2__)
  if constexpr (SameType<S, float>::value) {
    if (stride == 2 && len >= 8) {
      for (int64_t k = 0; k < count; ++k, dst += dst_step, src += src_step) {
        int64_t i = 0;
        for (; i + 8 <= len; i += 8) copy_even8(dst + i, src + 2 * i);
        if (i < len) copy_even8(dst + len - 8, src + 2 * (len - 8));
      }
      return;
    }
  }
#endif
  if (stride == 1) {
    for (int64_t k = 0; k < count; ++k, dst += dst_step, src += src_step)
      for (int64_t i = 0; i < len; ++i) dst[i] = to_acc(src[i]);
    return;
  }
  for (int64_t k = 0; k < count; ++k, dst += dst_step, src += src_step)
    for (int64_t i = 0; i < len; ++i) dst[i] = to_acc(src[i * stride]);
}

template <class T, class S>
FC_INLINE void copy_run(T* dst, const S* src, int64_t len, int64_t stride) {
  if (stride == 1) {
    for (int64_t i = 0; i < len; ++i) dst[i] = to_acc(src[i]);
  } else {
    for (int64_t i = 0; i < len; ++i) dst[i] = to_acc(src[i * stride]);
  }
}

#if defined(__AVX2__)
FC_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
FC_INLINE __m256 load8(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
FC_INLINE __m256 load8(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// dst[c*dst_ld + r] = rows[r][c], r, c < 8.
template <class S>
FC_INLINE void transpose_8x8(float* dst, int64_t dst_ld, const S* const* rows) {
  const __m256 a0 = load8(rows[0]), a1 = load8(rows[1]), a2 = load8(rows[2]), a3 = load8(rows[3]);
  const __m256 a4 = load8(rows[4]), a5 = load8(rows[5]), a6 = load8(rows[6]), a7 = load8(rows[7]);
  const __m256 b0 = _mm256_unpacklo_ps(a0, a1), b1 = _mm256_unpackhi_ps(a0, a1);
  const __m256 b2 = _mm256_unpacklo_ps(a2, a3), b3 = _mm256_unpackhi_ps(a2, a3);
  const __m256 b4 = _mm256_unpacklo_ps(a4, a5), b5 = _mm256_unpackhi_ps(a4, a5);
  const __m256 b6 = _mm256_unpacklo_ps(a6, a7), b7 = _mm256_unpackhi_ps(a6, a7);
  const __m256 c0 = _mm256_shuffle_ps(b0, b2, 0x44), c1 = _mm256_shuffle_ps(b0, b2, 0xEE);
  const __m256 c2 = _mm256_shuffle_ps(b1, b3, 0x44), c3 = _mm256_shuffle_ps(b1, b3, 0xEE);
  const __m256 c4 = _mm256_shuffle_ps(b4, b6, 0x44), c5 = _mm256_shuffle_ps(b4, b6, 0xEE);
  const __m256 c6 = _mm256_shuffle_ps(b5, b7, 0x44), c7 = _mm256_shuffle_ps(b5, b7, 0xEE);
  _mm256_storeu_ps(dst, _mm256_permute2f128_ps(c0, c4, 0x20));
  _mm256_storeu_ps(dst + dst_ld, _mm256_permute2f128_ps(c1, c5, 0x20));
  _mm256_storeu_ps(dst + 2 * dst_ld, _mm256_permute2f128_ps(c2, c6, 0x20));
  _mm256_storeu_ps(dst + 3 * dst_ld, _mm256_permute2f128_ps(c3, c7, 0x20));
  _mm256_storeu_ps(dst + 4 * dst_ld, _mm256_permute2f128_ps(c0, c4, 0x31));
  _mm256_storeu_ps(dst + 5 * dst_ld, _mm256_permute2f128_ps(c1, c5, 0x31));
  _mm256_storeu_ps(dst + 6 * dst_ld, _mm256_permute2f128_ps(c2, c6, 0x31));
  _mm256_storeu_ps(dst + 7 * dst_ld, _mm256_permute2f128_ps(c3, c7, 0x31));
}
#endif
template <class T, class S>
FC_INLINE void transpose_8x8(T* dst, int64_t dst_ld, const S* const* rows) {
  for (int c = 0; c < 8; ++c)
    for (int r = 0; r < 8; ++r) dst[c * dst_ld + r] = to_acc(rows[r][c]);
}

// dst[c*dst_ld + r] = src[row_offset(r) + c] for r < rows, c < columns.
template <class T, class S, class F>
FC_INLINE void transpose(T* dst, int64_t dst_ld, const S* src, int64_t rows, int64_t columns,
                         const F& row_offset) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    const S* p[8];
    for (int i = 0; i < 8; ++i) p[i] = src + row_offset(r + i);
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8) {
      transpose_8x8(dst + c * dst_ld + r, dst_ld, p);
      for (int i = 0; i < 8; ++i) p[i] += 8;
    }
    for (; c < columns; ++c)
      for (int i = 0; i < 8; ++i) dst[c * dst_ld + r + i] = to_acc(*p[i]++);
  }
  for (; r < rows; ++r) {
    const S* p = src + row_offset(r);
    for (int64_t c = 0; c < columns; ++c) dst[c * dst_ld + r] = to_acc(p[c]);
  }
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
