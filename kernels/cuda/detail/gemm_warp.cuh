// What one warp does with a stage in shared memory: acc [WARP_M, WARP_N] += A * B, on tensor cores
// or on the FMA pipe, for either orientation of either operand. Accumulation is in fp32, over
// gemm_k in ascending order.
//
// Both classes offer multiply(a, b) and visit(f), where f(m, n, v0, v1) gets two accumulators that
// are neighbours along gemm_n when PAIRS, else f(m, n, v). m, n count from the block's tile.
#pragma once
#include "gemm_tile.cuh"
#include "mma.cuh"

namespace fastconv::cuda {

// mma.sync. A stage is two steps of gemm_k, 16 elements each (8 for TF32): 32 bytes, so that the
// same ldmatrix pattern serves all types when the operand is K_CONTIGUOUS (a 4-byte element is two
// neighbouring 16-bit ones to it, and lands whole in one register).
template <class Tile, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
class TensorCoreWarp {
  using scalar_t = typename Tile::scalar_t;
  using A = OperandTile<scalar_t, Tile::BLOCK_M, A_K_CONTIGUOUS>;
  using B = OperandTile<scalar_t, Tile::BLOCK_N, B_K_CONTIGUOUS>;
  static constexpr int STEPS = 2;
  static constexpr int STEP_K = Tile::BLOCK_K / STEPS;
  static constexpr int FRAGMENTS_M = Tile::WARP_M / 16, FRAGMENTS_N = Tile::WARP_N / 8;
  static_assert(Tile::WARP_M % 32 == 0 && Tile::WARP_N % 32 == 0);

 public:
  static constexpr bool PAIRS = true;

  __device__ __forceinline__ TensorCoreWarp()
      : lane_(threadIdx.x % 32),
        m_(threadIdx.x / 32 / Tile::WARPS_N * Tile::WARP_M),
        n_(threadIdx.x / 32 % Tile::WARPS_N * Tile::WARP_N) {
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc_[i][j][e] = 0.0f;
  }

  __device__ __forceinline__ void multiply(const scalar_t* a, const scalar_t* b) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      uint32_t fa[FRAGMENTS_M][4], fb[FRAGMENTS_N / 2][4];
#pragma unroll
      for (int i = 0; i < FRAGMENTS_M; ++i) load_a(fa[i], a, m_ + i * 16, step);
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N / 2; ++j) load_b(fb[j], b, n_ + j * 16, step);
#pragma unroll
      for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
        for (int j = 0; j < FRAGMENTS_N; ++j) {
          const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
          if constexpr (Tile::MATH == GemmMath::kTf32)
            mma_m16n8k8_tf32(acc_[i][j], fa[i], pair);
          else
            mma_m16n8k16<scalar_t>(acc_[i][j], fa[i], pair);
        }
    }
  }

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(m_ + i * 16 + half * 8 + lane_ / 4, n_ + j * 8 + lane_ % 4 * 2, acc_[i][j][half * 2],
            acc_[i][j][half * 2 + 1]);
  }

 private:
  // r[0..3]: rows 0-7 and 8-15 of the first half of gemm_k, then of the second half.
  __device__ __forceinline__ void load_a(uint32_t (&r)[4], const scalar_t* a, int m,
                                         int step) const {
    if constexpr (A_K_CONTIGUOUS) {
      // The fragment's first row is a multiple of 16: only the lane's row matters to the swizzle.
      ldmatrix_x4(r, a + m * A::COLS + A::chunk_offset(lane_ & 15, step * 2 + (lane_ >> 4)));
    } else if constexpr (sizeof(scalar_t) == 2) {
      const int k = step * STEP_K + (lane_ & 7) + (lane_ >> 4) * 8;
      ldmatrix_x4_trans(r, a + A::chunk_offset(k, m / 8 + ((lane_ >> 3) & 1)));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = step * STEP_K + lane_ % 4 + e / 2 * 4;
        r[e] = __float_as_uint(a[k * A::COLS + column(m_, (m - m_) / 8 + e % 2)]);
      }
    }
    round(r);
  }
  // Two fragments: r[0..1] columns 0-7 (first and second half of gemm_k), r[2..3] columns 8-15.
  __device__ __forceinline__ void load_b(uint32_t (&r)[4], const scalar_t* b, int n,
                                         int step) const {
    if constexpr (B_K_CONTIGUOUS) {
      const int row = (lane_ & 7) + (lane_ >> 4) * 8;
      ldmatrix_x4(r, b + n * B::COLS + B::chunk_offset(row, step * 2 + ((lane_ >> 3) & 1)));
    } else if constexpr (sizeof(scalar_t) == 2) {
      const int k = step * STEP_K + (lane_ & 15);
      ldmatrix_x4_trans(r, b + B::chunk_offset(k, n / 8 + (lane_ >> 4)));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = step * STEP_K + lane_ % 4 + e % 2 * 4;
        r[e] = __float_as_uint(b[k * B::COLS + column(n_, (n - n_) / 8 + e / 2)]);
      }
    }
    round(r);
  }
  // OperandTile::offset's column for 4-byte elements, k = lane % 4 (mod 4) and the lane's row of
  // the i-th eight from `first`, a multiple of 32: four addresses and immediates serve all
  // fragments.
  __device__ __forceinline__ int column(int first, int i) const {
    return first + i / 4 * 32 + ((i % 4) ^ (lane_ % 4)) * 8 + lane_ / 4;
  }
  // The instruction would cut the low bits off; rounding halves the error.
  static __device__ __forceinline__ void round(uint32_t (&r)[4]) {
    if constexpr (Tile::MATH == GemmMath::kTf32) {
#pragma unroll
      for (int e = 0; e < 4; ++e) r[e] = to_tf32(__uint_as_float(r[e]));
    }
  }

  float acc_[FRAGMENTS_M][FRAGMENTS_N][4];
  int lane_, m_, n_;
};

// FFMA: a lane owns THREAD_M x THREAD_N accumulators, the warp's lanes lie 4 x 8. Operands are read
// 16 bytes at a time, along gemm_k or along gemm_m (gemm_n) as they lie: either way four steps of
// gemm_k cost THREAD_M + THREAD_N reads for 4 THREAD_M THREAD_N multiply-adds.
template <class Tile, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
class FmaWarp {
  using A = OperandTile<float, Tile::BLOCK_M, A_K_CONTIGUOUS>;
  using B = OperandTile<float, Tile::BLOCK_N, B_K_CONTIGUOUS>;
  static constexpr int LANES_M = 4, LANES_N = 8;
  static constexpr int THREAD_M = Tile::WARP_M / LANES_M, THREAD_N = Tile::WARP_N / LANES_N;
  static_assert(THREAD_M % 4 == 0 && THREAD_N % 4 == 0);

 public:
  static constexpr bool PAIRS = false;

  __device__ __forceinline__ FmaWarp()
      : lane_m_(threadIdx.x % 32 / LANES_N),
        lane_n_(threadIdx.x % LANES_N),
        m_(threadIdx.x / 32 / Tile::WARPS_N * Tile::WARP_M),
        n_(threadIdx.x / 32 % Tile::WARPS_N * Tile::WARP_N) {
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
      for (int j = 0; j < THREAD_N; ++j) acc_[i][j] = 0.0f;
  }

  __device__ __forceinline__ void multiply(const float* a, const float* b) {
#pragma unroll 1
    for (int k = 0; k < Tile::BLOCK_K; k += 4) {
      float fa[THREAD_M][4], fb[THREAD_N][4];  // [.., gemm_k]
      load<A, THREAD_M, LANES_M>(fa, a, m_, lane_m_, k);
      load<B, THREAD_N, LANES_N>(fb, b, n_, lane_n_, k);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
          for (int j = 0; j < THREAD_N; ++j) acc_[i][j] = fmaf(fa[i][e], fb[j][e], acc_[i][j]);
    }
  }

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
      for (int j = 0; j < THREAD_N; ++j)
        f(m_ + place<A_K_CONTIGUOUS, LANES_M>(lane_m_, i),
          n_ + place<B_K_CONTIGUOUS, LANES_N>(lane_n_, j), acc_[i][j]);
  }

 private:
  // Which row of the warp's tile a lane's i-th is. K_CONTIGUOUS: neighbouring lanes hold
  // neighbouring rows, whose chunks lie in different banks; else a lane holds four in a row.
  template <bool K_CONTIGUOUS, int LANES>
  static __device__ __forceinline__ int place(int lane, int i) {
    return K_CONTIGUOUS ? lane + i * LANES : lane * 4 + i % 4 + i / 4 * LANES * 4;
  }
  template <class Operand, int COUNT, int LANES>
  static __device__ __forceinline__ void load(float (&r)[COUNT][4], const float* tile, int first,
                                              int lane, int k) {
    if constexpr (Operand::K_CONTIGUOUS) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int row = first + place<true, LANES>(lane, i);
        const float4 v = *reinterpret_cast<const float4*>(tile + Operand::chunk_offset(row, k / 4));
        r[i][0] = v.x, r[i][1] = v.y, r[i][2] = v.z, r[i][3] = v.w;
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          const int col = first + place<false, LANES>(lane, i);
          const float4 v =
              *reinterpret_cast<const float4*>(tile + Operand::chunk_offset(k + e, col / 4));
          r[i][e] = v.x, r[i + 1][e] = v.y, r[i + 2][e] = v.z, r[i + 3][e] = v.w;
        }
    }
  }

  float acc_[THREAD_M][THREAD_N];
  int lane_m_, lane_n_, m_, n_;
};

template <class Tile, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
using GemmWarp =
    std::conditional_t<Tile::MATH == GemmMath::kFma, FmaWarp<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS>,
                       TensorCoreWarp<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS>>;

}  // namespace fastconv::cuda
