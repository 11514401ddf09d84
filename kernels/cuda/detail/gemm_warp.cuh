// What one warp does with a stage in shared memory: acc [WARP_M, WARP_N] += A * B, on tensor cores
// or on the FMA pipe, for either orientation of either operand. Accumulation is in fp32, over
// gemm_k in ascending order.
//
// Both classes offer multiply(ring), move(elements) and visit(f), where f(m, n, v0, v1) gets two
// accumulators that are neighbours along gemm_n when PAIRS, else f(m, n, v). m, n count from the
// block's tile.
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
  static constexpr bool SPLIT = Tile::MATH == GemmMath::kTf32x3;
  static constexpr int STEPS = 2;
  static constexpr int STEP_K = Tile::BLOCK_K / STEPS, HALF_K = STEP_K / 2;
  static constexpr bool LDMATRIX = sizeof(scalar_t) == 2;
  static constexpr int FRAGMENTS_M = Tile::WARP_M / 16, FRAGMENTS_N = Tile::WARP_N / 8;
  static_assert(Tile::WARP_M % 32 == 0 && Tile::WARP_N % 32 == 0);

 public:
  static constexpr bool PAIRS = true;

  __device__ __forceinline__ TensorCoreWarp()
      : lane_(threadIdx.x % 32),
        m_(Tile::Threads::index() / 32 / Tile::WARPS_N * Tile::WARP_M),
        n_(Tile::Threads::index() / 32 % Tile::WARPS_N * Tile::WARP_N) {
    // Which row of the four 8x8 matrices (ldmatrix), or which element, the lane addresses first.
    const int low = lane_ & 7, bit3 = lane_ & 8, bit4 = (lane_ & 16) / 2;
    if constexpr (A_K_CONTIGUOUS)
      a_ = A::offset(m_ + low + bit3, bit4 * HALF_K / 8);
    else if constexpr (LDMATRIX)
      a_ = A::offset(low + bit4, m_ + bit3);
    else
      a_ = A::offset(lane_ % 4, m_ + lane_ / 4);
    if constexpr (B_K_CONTIGUOUS)
      b_ = B::offset(n_ + low + bit4, bit3 * HALF_K / 8);
    else if constexpr (LDMATRIX)
      b_ = B::offset(low + bit3, n_ + bit4);
    else
      b_ = B::offset(lane_ % 4, n_ + lane_ / 4);
    b_ += Tile::STAGE_B;
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc_[i][j][e] = 0.0f;
  }

  // The present stage of `ring`.
  __device__ __forceinline__ void multiply(const scalar_t* ring) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      uint32_t fa[FRAGMENTS_M][4], fb[FRAGMENTS_N / 2][4];
#pragma unroll
      for (int i = 0; i < FRAGMENTS_M; ++i) load_a(fa[i], ring, i * 16, step * STEP_K);
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N / 2; ++j) load_b(fb[j], ring, j * 16, step * STEP_K);
      if constexpr (SPLIT) {
        multiply_split(fa, fb);
      } else {
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
  }

  // To the stage `elements` further on.
  __device__ __forceinline__ void move(int elements) { a_ += elements, b_ += elements; }

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
  // What the three products leave out, small times small, is as little as what splitting does. They
  // start from zero at each step and are added to the accumulators outside: the tensor cores cut
  // off what does not fit, so that sums carried along in them would lose up to a unit per step,
  // always toward zero.
  __device__ __forceinline__ void multiply_split(uint32_t (&fa)[FRAGMENTS_M][4],
                                                 uint32_t (&fb)[FRAGMENTS_N / 2][4]) {
    uint32_t small_a[FRAGMENTS_M][4], small_b[FRAGMENTS_N / 2][4];
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i) split_tf32(fa[i], small_a[i]);
#pragma unroll
    for (int j = 0; j < FRAGMENTS_N / 2; ++j) split_tf32(fb[j], small_b[j]);
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j) {
        const int e = j % 2 * 2;
        const uint32_t big[2] = {fb[j / 2][e], fb[j / 2][e + 1]};
        const uint32_t small[2] = {small_b[j / 2][e], small_b[j / 2][e + 1]};
        float sum[4] = {};
        mma_m16n8k8_tf32(sum, small_a[i], big);
        mma_m16n8k8_tf32(sum, fa[i], small);
        mma_m16n8k8_tf32(sum, fa[i], big);
#pragma unroll
        for (int k = 0; k < 4; ++k) acc_[i][j][k] += sum[k];
      }
  }

  // r[0..3]: rows 0-7 and 8-15 of the first half of gemm_k, then of the second half.
  __device__ __forceinline__ void load_a(uint32_t (&r)[4], const scalar_t* ring, int m,
                                         int k) const {
    if constexpr (A_K_CONTIGUOUS) {
      ldmatrix_x4(r, ring + A::moved(a_, m, k));
    } else if constexpr (LDMATRIX) {
      ldmatrix_x4_trans(r, ring + A::moved(a_, k, m));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        r[e] = __float_as_uint(ring[A::moved(a_, k + e / 2 * 4, m + e % 2 * 8)]);
    }
    round(r);
  }
  // Two fragments: r[0..1] columns 0-7 (first and second half of gemm_k), r[2..3] columns 8-15.
  __device__ __forceinline__ void load_b(uint32_t (&r)[4], const scalar_t* ring, int n,
                                         int k) const {
    if constexpr (B_K_CONTIGUOUS) {
      ldmatrix_x4(r, ring + B::moved(b_, n, k));
    } else if constexpr (LDMATRIX) {
      ldmatrix_x4_trans(r, ring + B::moved(b_, k, n));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        r[e] = __float_as_uint(ring[B::moved(b_, k + e % 2 * 4, n + e / 2 * 8)]);
    }
    round(r);
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
  int a_, b_;  // first address of the lane in the present stage, carried through the loop
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
        m_(Tile::Threads::index() / 32 / Tile::WARPS_N * Tile::WARP_M),
        n_(Tile::Threads::index() / 32 % Tile::WARPS_N * Tile::WARP_N),
        a_(first<A>(m_ + place<A_K_CONTIGUOUS, LANES_M>(lane_m_, 0))),
        b_(Tile::STAGE_B + first<B>(n_ + place<B_K_CONTIGUOUS, LANES_N>(lane_n_, 0))) {
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
      for (int j = 0; j < THREAD_N; ++j) acc_[i][j] = 0.0f;
  }

  __device__ __forceinline__ void multiply(const float* ring) {
    // Not unrolled as a whole: the loads of one step are enough in flight, and registers are few.
#pragma unroll 1
    for (int k = 0; k < Tile::BLOCK_K; k += 4) {
      float fa[THREAD_M][4], fb[THREAD_N][4];  // [.., gemm_k]
      load<A, THREAD_M, LANES_M>(fa, ring, a_, k);
      load<B, THREAD_N, LANES_N>(fb, ring, b_, k);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
          for (int j = 0; j < THREAD_N; ++j) acc_[i][j] = fmaf(fa[i][e], fb[j][e], acc_[i][j]);
    }
  }

  // To the stage `elements` further on.
  __device__ __forceinline__ void move(int elements) { a_ += elements, b_ += elements; }

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
  template <class Operand>
  static __device__ __forceinline__ int first(int mn) {
    return Operand::K_CONTIGUOUS ? Operand::offset(mn, 0) : Operand::offset(0, mn);
  }
  template <class Operand, int COUNT, int LANES>
  static __device__ __forceinline__ void load(float (&r)[COUNT][4], const float* ring, int at,
                                              int k) {
    if constexpr (Operand::K_CONTIGUOUS) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const float4 v = *reinterpret_cast<const float4*>(ring + Operand::moved(at, i * LANES, k));
        r[i][0] = v.x, r[i][1] = v.y, r[i][2] = v.z, r[i][3] = v.w;
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          const float4 v =
              *reinterpret_cast<const float4*>(ring + Operand::moved(at, k + e, i * LANES));
          r[i][e] = v.x, r[i + 1][e] = v.y, r[i + 2][e] = v.z, r[i + 3][e] = v.w;
        }
    }
  }

  float acc_[THREAD_M][THREAD_N];
  int lane_m_, lane_n_, m_, n_;
  int a_, b_;  // first address of the lane in the present stage, carried through the loop
};

template <class Tile, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
using GemmWarp =
    std::conditional_t<Tile::MATH == GemmMath::kFma, FmaWarp<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS>,
                       TensorCoreWarp<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS>>;

}  // namespace fastconv::cuda
