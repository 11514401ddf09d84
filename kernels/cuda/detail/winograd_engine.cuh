// The products of a fused Winograd kernel: per point of the tile, a 32 x 32 block of
//   D[m][n] += sum_r A[m][r] B[n][r],   r = 0..7,
// by one warp, on FMA (WinogradFma, strict fp32) or on tensor cores (WinogradTf32: operands rounded
// to TF32, sums in fp32). Both keep 32 sums per lane and 256 floats per operand and point in shared
// memory; only where (m, r) lies and which sums a lane has differ, and both are chosen so that
// - a lane reads its operands with 16-byte loads, without bank conflicts,
// - threads that write a transformed tile, 32 values of m (or n) side by side or, if `kSwizzle`, 4
//   of them times 8 of r, meet no bank conflicts,
// - sums go to rows of m, kSumPitch floats apart, n side by side, without bank conflicts, and so
//   that half h of a lane's sums has m = 16 h to 16 h + 15.
// m % 32 is row(lane, h, i), n is column(lane, i) for sum[h][i / 4][i % 4].
#pragma once
#include "mma.cuh"
#include "platform.cuh"

namespace fastconv::cuda {

constexpr int kWinogradBlock = 32;                               // m and n of a block
constexpr int kWinogradDepth = 8;                                // r of a step
constexpr int kWinogradPoint = kWinogradBlock * kWinogradDepth;  // floats of an operand and point
constexpr int kWinogradSumPitch = kWinogradBlock + 1;

using WinogradSums = float[2][4][4];

struct WinogradFma {
  static constexpr bool kTf32 = false;
  static __device__ __forceinline__ float operand(float v) { return v; }

  // A lane (a, b) = (lane / 8, lane % 8) has m = a + 4 i, i = 0..7, and n = 4 b + j. Its m are two
  // groups of four floats, each rotated by a, so that four neighbouring m lie in different banks.
  template <bool kSwizzle>
  static __device__ __forceinline__ int a_slot(int m, int r) {
    const int a = m & 3, i = m >> 2;
    const int unit = (2 * a + (i >> 2)) ^ (kSwizzle ? r : 0);
    return r * kWinogradBlock + unit * 4 + ((i + a) & 3);
  }
  template <bool kSwizzle>
  static __device__ __forceinline__ int b_slot(int n, int r) {
    return r * kWinogradBlock + ((n >> 2) ^ (kSwizzle ? r : 0)) * 4 + (n & 3);
  }
  static __device__ __forceinline__ int row(int lane, int half, int i) {
    const int a = lane >> 3;
    return a + 4 * (((i >> 2) - a) & 3) + 16 * half;
  }
  static __device__ __forceinline__ int column(int lane, int i) { return 4 * (lane & 7) + (i & 3); }

  template <bool kSwizzleA, bool kSwizzleB, int kPoints>
  static __device__ __forceinline__ void multiply(int lane, const float* a, const float* b,
                                                  WinogradSums (&sums)[kPoints]) {
    const int unit_a = 2 * (lane >> 3), unit_b = lane & 7;
#pragma unroll 2
    for (int r = 0; r < kWinogradDepth; ++r) {
      const float* row_a = a + r * kWinogradBlock;
      const float* row_b = b + r * kWinogradBlock + (unit_b ^ (kSwizzleB ? r : 0)) * 4;
#pragma unroll
      for (int e = 0; e < kPoints; ++e) {
        const float4 n4 = *reinterpret_cast<const float4*>(row_b + e * kWinogradPoint);
        const float n[4] = {n4.x, n4.y, n4.z, n4.w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int unit = (unit_a + half) ^ (kSwizzleA ? r : 0);
          const float4 m4 = *reinterpret_cast<const float4*>(row_a + e * kWinogradPoint + unit * 4);
          const float m[4] = {m4.x, m4.y, m4.z, m4.w};
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[e][half][i][j] += m[i] * n[j];
        }
      }
    }
  }
};

// m16n8k8: with g = lane / 4, t = lane % 4 a lane holds A rows g, g + 8 at r = t, t + 4, B columns
// g at r = t, t + 4, and D rows g, g + 8, columns 2 t, 2 t + 1. An operand is stored in the order
// in which lanes take it, in units of 16 bytes; exclusive-ors spread what one warp writes over the
// banks.
struct WinogradTf32 {
  static constexpr bool kTf32 = true;
  static __device__ __forceinline__ float operand(float v) { return __uint_as_float(to_tf32(v)); }

  template <bool>
  static __device__ __forceinline__ int a_slot(int m, int r) {
    const int tile = m >> 4, upper = (m >> 3) & 1, g = m & 7;
    const int unit = 32 * tile + 4 * g + ((r & 3) ^ (g >> 1));
    return unit * 4 + ((r >> 2) ^ tile) * 2 + (upper ^ ((g >> 1) & 1));
  }
  template <bool>
  static __device__ __forceinline__ int b_slot(int n, int r) {
    const int g = n >> 2, pair = (n >> 1) & 1;
    const int unit = 32 * pair + 4 * (g ^ pair) + ((r & 3) ^ (g >> 1));
    return unit * 4 + (n & 1) * 2 + ((r >> 2) ^ pair);
  }
  static __device__ __forceinline__ int row(int lane, int half, int i) {
    const int g = lane >> 2, upper = (i >> 1) & 1;
    return 16 * half + 8 * (upper ^ ((g >> 1) & 1)) + g;
  }
  static __device__ __forceinline__ int column(int lane, int i) {
    return 4 * (2 * (lane & 3) + (i & 1)) + (i >> 2);
  }

  template <bool, bool, int kPoints>
  static __device__ __forceinline__ void multiply(int lane, const float* a, const float* b,
                                                  WinogradSums (&sums)[kPoints]) {
    const int g = lane >> 2, spread = (lane & 3) ^ (g >> 1);
#pragma unroll
    for (int e = 0; e < kPoints; ++e) {
      uint32_t rows[2][4];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const uint4 v = *reinterpret_cast<const uint4*>(a + e * kWinogradPoint +
                                                        (32 * tile + 4 * g + spread) * 4);
        rows[tile][0] = tile ? v.z : v.x;
        rows[tile][1] = tile ? v.w : v.y;
        rows[tile][2] = tile ? v.x : v.z;
        rows[tile][3] = tile ? v.y : v.w;
      }
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 v = *reinterpret_cast<const uint4*>(b + e * kWinogradPoint +
                                                        (32 * pair + 4 * (g ^ pair) + spread) * 4);
        const uint32_t columns[2][2] = {{pair ? v.y : v.x, pair ? v.x : v.y},
                                        {pair ? v.w : v.z, pair ? v.z : v.w}};
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int tile = 0; tile < 2; ++tile)
            mma_m16n8k8_tf32(sums[e][tile][2 * pair + j], rows[tile], columns[j]);
      }
    }
  }
};

}  // namespace fastconv::cuda
