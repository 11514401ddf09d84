// C[i] [M, N] = A[i] [M, K] * B[i] [K, N] for every i of a batch, fp32 accumulation: the block
// product of gemm.cuh over plain strided matrices.
//
//   A: [batch, M, K] (A_K_CONTIGUOUS) or [batch, K, M]; B: [batch, N, K] (B_K_CONTIGUOUS) or
//   [batch, K, N]; C: [splits, batch, M, N]. Rows and matrices at any stride.
//   scalar_t of A and B: fp32 (FFMA or TF32), bf16, fp16, by the Tile; out_t: scalar_t or float.
//
// One block per tile of C; blocks that run side by side share a matrix of the batch. With splits >
// 1 each of them sums its own range of K into its own C, for the caller to add up in order. Offsets
// within a tile are 32-bit (BLOCK_M, BLOCK_N or BLOCK_K rows, so strides up to 2^23 or so), bases
// and the walk along K 64-bit. FLOPs: 2 batch M N K. Bytes: see gemm.cuh. Deterministic. Speed: not
// measured on a GPU.
//
// How to use it from another kernel's launcher:
//   using Tile = GemmTile<__nv_bfloat16, GemmMath::kMma16, 128, 128, 64, 32, 4, 2>;
//   GemmBatchedParams p = gemm_batched_params(a, b, c, batch, M, N, K);   // dense, row strides set
//   p.a_row = ...;                                                       // or as they are
//   error = launch_gemm_batched<Tile, float, true, false, 8, 8>(p, stream);
// VEC_A, VEC_B: elements per copy. 16 / sizeof(scalar_t) needs 16-byte aligned bases, batch and row
// strides that are multiples of it, and a contiguous extent (K, or M, N) that is one too
// (gemm_batched_vec tells); 1 takes anything.
#pragma once
#include "gemm.cuh"

namespace fastconv::cuda {

struct GemmBatchedParams {
  const void *a, *b;
  void* c;
  int M, N, K;
  int splits;  // of K
  int64_t batch;
  int64_t a_batch, b_batch, c_batch;  // elements from one matrix to the next
  int64_t c_split;                    // elements from one split's C to the next
  int a_row, b_row, c_row;            // elements from one stored row to the next
  // Filled in by the launcher.
  int m_tiles, n_tiles, split_tiles;  // tiles of BLOCK_K to a split
  bool vec4;
};

// All three dense; a_row and b_row as the orientations say.
template <bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
inline GemmBatchedParams gemm_batched_params(const void* a, const void* b, void* c, int64_t batch,
                                             int M, int N, int K, int splits = 1) {
  GemmBatchedParams p{};
  p.a = a, p.b = b, p.c = c;
  p.M = M, p.N = N, p.K = K;
  p.splits = splits;
  p.batch = batch;
  p.a_batch = static_cast<int64_t>(M) * K;
  p.b_batch = static_cast<int64_t>(K) * N;
  p.c_batch = static_cast<int64_t>(M) * N;
  p.c_split = p.c_batch * batch;
  p.a_row = A_K_CONTIGUOUS ? K : M;
  p.b_row = B_K_CONTIGUOUS ? K : N;
  p.c_row = N;
  return p;
}

// Whether one operand can be copied 16 bytes at a time; `extent` is its contiguous one.
inline bool gemm_batched_vec(const void* base, int64_t batch_stride, int row_stride, int extent,
                             int element_bytes) {
  const int vec = 16 / element_bytes;
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && batch_stride % vec == 0 &&
         row_stride % vec == 0 && extent % vec == 0;
}

template <class Tile, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, int VEC_A, int VEC_B>
struct GemmBatchedLoaders {
  using scalar_t = typename Tile::scalar_t;
  using KMap = StrideKMap<Tile::BLOCK_K>;
  using A = GemmLoader<OperandTile<scalar_t, Tile::BLOCK_M, A_K_CONTIGUOUS>, Tile::NUM_THREADS,
                       VEC_A, GemmCheck::kSign, StrideMap, KMap>;
  using B = GemmLoader<OperandTile<scalar_t, Tile::BLOCK_N, B_K_CONTIGUOUS>, Tile::NUM_THREADS,
                       VEC_B, GemmCheck::kSign, StrideMap, KMap>;
};

// grid.x: splits x batch x gemm_m tiles x gemm_n tiles, the last fastest.
template <class Tile, class out_t, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, int VEC_A, int VEC_B>
__global__ void __launch_bounds__(Tile::NUM_THREADS, Tile::MIN_BLOCKS)
    gemm_batched_kernel(const GemmBatchedParams p) {
  using scalar_t = typename Tile::scalar_t;
  using Loaders = GemmBatchedLoaders<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS, VEC_A, VEC_B>;
  constexpr int BLOCK_K = Tile::BLOCK_K;
  FC_DYN_SHARED(unsigned char, shared);
  unsigned index = blockIdx.x;
  const int n0 = static_cast<int>(index % p.n_tiles) * Tile::BLOCK_N;
  index /= p.n_tiles;
  const int m0 = static_cast<int>(index % p.m_tiles) * Tile::BLOCK_M;
  index /= p.m_tiles;
  const int64_t item = index % p.batch;
  const int split = static_cast<int>(index / p.batch);
  const int k0 = split * p.split_tiles * BLOCK_K;
  const int k_left = p.K - k0;
  int k_tiles = (k_left + BLOCK_K - 1) / BLOCK_K;
  k_tiles = k_tiles < 0 ? 0 : k_tiles < p.split_tiles ? k_tiles : p.split_tiles;

  const scalar_t* a = static_cast<const scalar_t*>(p.a) + item * p.a_batch +
                      (A_K_CONTIGUOUS ? static_cast<int64_t>(m0) * p.a_row + k0
                                      : static_cast<int64_t>(k0) * p.a_row + m0);
  const scalar_t* b = static_cast<const scalar_t*>(p.b) + item * p.b_batch +
                      (B_K_CONTIGUOUS ? static_cast<int64_t>(n0) * p.b_row + k0
                                      : static_cast<int64_t>(k0) * p.b_row + n0);
  const Box box{};
  unsigned char* tables = shared + Tile::RING_BYTES;
  typename Loaders::A load_a(a, {A_K_CONTIGUOUS ? p.a_row : 1, p.M - m0},
                             {A_K_CONTIGUOUS ? 1 : p.a_row, k_left}, box, 0, tables);
  typename Loaders::B load_b(b, {B_K_CONTIGUOUS ? p.b_row : 1, p.N - n0},
                             {B_K_CONTIGUOUS ? 1 : p.b_row, k_left}, box, Tile::STAGE_B,
                             tables + Loaders::A::TABLE_BYTES);
  __syncthreads();
  load_a.start();
  load_b.start();
  GemmWarp<Tile, A_K_CONTIGUOUS, B_K_CONTIGUOUS> warp;
  gemm_mainloop<Tile>(warp, load_a, load_b, k_tiles, shared);

  out_t* c = static_cast<out_t*>(p.c) + split * p.c_split + item * p.c_batch +
             static_cast<int64_t>(m0) * p.c_row + n0;
  const GemmStore<out_t, StrideMap, StrideMap> store{
      c, {p.c_row, p.M - m0}, {1, p.N - n0}, p.vec4, nullptr};
  gemm_epilogue<Tile>(warp, store, shared);
}

// Returns the cudaError_t. M, N, batch > 0; K >= 0.
template <class Tile, class out_t, bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, int VEC_A, int VEC_B>
int launch_gemm_batched(GemmBatchedParams p, void* stream) {
  p.m_tiles = (p.M + Tile::BLOCK_M - 1) / Tile::BLOCK_M;
  p.n_tiles = (p.N + Tile::BLOCK_N - 1) / Tile::BLOCK_N;
  const int k_tiles = (p.K + Tile::BLOCK_K - 1) / Tile::BLOCK_K;
  p.split_tiles = (k_tiles + p.splits - 1) / p.splits;
  p.vec4 = reinterpret_cast<uintptr_t>(p.c) % (4 * sizeof(out_t)) == 0 && p.c_row % 4 == 0 &&
           p.N % 4 == 0 && p.c_batch % 4 == 0 && p.c_split % 4 == 0;
  const int64_t blocks = p.batch * p.splits * p.m_tiles * p.n_tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            gemm_shared_bytes<Tile>(), stream};
  return launch_kernel(
      gemm_batched_kernel<Tile, out_t, A_K_CONTIGUOUS, B_K_CONTIGUOUS, VEC_A, VEC_B>, config, p);
}

}  // namespace fastconv::cuda
