// The shapes of a block's matrix product: C [BLOCK_M, BLOCK_N] += A [BLOCK_M, BLOCK_K] *
// B [BLOCK_K, BLOCK_N], and how one operand's stage lies in shared memory.
//
// A stage holds 64 bytes of gemm_k. Either orientation of an operand is taken as it comes from
// memory, "K_CONTIGUOUS" or contiguous along gemm_m (gemm_n), so that no copy ever transposes:
// fragments are transposed by ldmatrix.trans, or are read element by element (4-byte types).
// Rows are cut in 16-byte chunks whose order is permuted by an XOR with the row, so that the eight
// rows of an ldmatrix, the 16-byte reads of the FMA kernels and the 4-byte reads of TF32 fragments
// all touch every bank once.
#pragma once
#include "common/conv_problem.h"
#include "platform.cuh"

namespace fastconv::cuda {

enum class GemmMath : int {
  kFma,     // fp32 on the FMA pipe
  kTf32,    // fp32 rounded to TF32, mma.sync m16n8k8
  kMma16,   // bf16 or fp16, mma.sync m16n8k16
  kTf32x3,  // fp32 as the sum of two TF32 numbers, three products, mma.sync m16n8k8
};

// The threads of a product are those of the block.
struct BlockThreads {
  static __device__ __forceinline__ unsigned index() { return threadIdx.x; }
};
// The block's threads form slices of so many, each of which has a product of its own.
template <int NUM_THREADS>
struct SliceThreads {
  static __device__ __forceinline__ unsigned index() { return threadIdx.x % NUM_THREADS; }
};

template <class scalar, GemmMath math, int block_m, int block_n, int warp_m, int warp_n, int stages,
          int min_blocks>
struct GemmTile {
  using scalar_t = scalar;
  using Threads = BlockThreads;
  static constexpr GemmMath MATH = math;
  static constexpr int BLOCK_M = block_m, BLOCK_N = block_n;
  static constexpr int BLOCK_K = 64 / static_cast<int>(sizeof(scalar));
  static constexpr int WARP_M = warp_m, WARP_N = warp_n;
  static constexpr int WARPS_N = BLOCK_N / WARP_N;
  static constexpr int NUM_WARPS = (BLOCK_M / WARP_M) * WARPS_N;
  static constexpr int NUM_THREADS = 32 * NUM_WARPS;
  static constexpr int NUM_STAGES = stages;
  static constexpr int MIN_BLOCKS = min_blocks;  // per SM, for __launch_bounds__
  static constexpr int A_BYTES = BLOCK_M * 64, B_BYTES = BLOCK_N * 64;
  static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int STAGE = STAGE_BYTES / static_cast<int>(sizeof(scalar));  // elements
  static constexpr int STAGE_B = A_BYTES / static_cast<int>(sizeof(scalar));    // where B's part is
  // The epilogue passes the whole tile through the same memory, in fp32.
  static constexpr int RING_BYTES = STAGE_BYTES * NUM_STAGES > BLOCK_M* BLOCK_N * 4
                                        ? STAGE_BYTES* NUM_STAGES
                                        : BLOCK_M* BLOCK_N * 4;
  static_assert(BLOCK_M % WARP_M == 0 && BLOCK_N % WARP_N == 0 && NUM_STAGES >= 2);
  static_assert(math == GemmMath::kMma16 ? sizeof(scalar) == 2 : sizeof(scalar) == 4);
};

// One operand's stage: [EXTENT, BLOCK_K] when K_CONTIGUOUS, else [BLOCK_K, EXTENT]; EXTENT is
// BLOCK_M or BLOCK_N. Offsets are in elements.
template <class scalar, int extent, bool k_contiguous>
struct OperandTile {
  using scalar_t = scalar;
  static constexpr bool K_CONTIGUOUS = k_contiguous;
  static constexpr int EXTENT = extent;
  static constexpr int BLOCK_K = 64 / static_cast<int>(sizeof(scalar));
  static constexpr int CHUNK = 16 / static_cast<int>(sizeof(scalar));
  static constexpr int ROWS = k_contiguous ? extent : BLOCK_K;
  static constexpr int COLS = k_contiguous ? BLOCK_K : extent;
  static_assert(k_contiguous || COLS / CHUNK >= 8, "the permutation needs eight chunks to a row");

  // What the chunk index of a row is XORed with: bits of the row.
  static FC_HOST_DEVICE constexpr int swizzle(int row) {
    if (k_contiguous) return (row >> 1) & 3;  // two rows of 64 bytes fill the banks once
    // 16-bit: eight rows of an ldmatrix. 4-byte: a fragment reads 8 elements (two chunks) of 4
    // rows.
    return sizeof(scalar) == 2 ? row & 7 : (row & 3) * 2;
  }
  static FC_HOST_DEVICE constexpr int offset(int row, int col) {
    return row * COLS + ((col / CHUNK) ^ swizzle(row)) * CHUNK + col % CHUNK;
  }
  // offset(row + rows, col + cols) from offset(row, col), where the sums carry no bit and cols is a
  // multiple of CHUNK: an XOR and an addition of constants once the loops are unrolled. `offset`
  // may have multiples of a stage on top.
  static FC_HOST_DEVICE constexpr int moved(int offset, int rows, int cols) {
    return (offset ^ (((cols / CHUNK) ^ swizzle(rows)) * CHUNK)) + rows * COLS;
  }
};

}  // namespace fastconv::cuda
