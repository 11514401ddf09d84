// A matrix product whose gemm_k is shared out among slices of one block: each slice of
// Tile::NUM_THREADS threads has a ring of its own and sums its part, and the epilogue adds the
// parts in the order of the slices. Where a tile is small and gemm_k long, this has several times
// the loads under way, and no second kernel.
//
// Deterministic: the cut depends on gemm_k alone.
#pragma once
#include "gemm.cuh"

namespace fastconv::cuda {

template <class Base, int slices>
struct SlicedTile : Base {
  using Threads = std::conditional_t<slices == 1, BlockThreads, SliceThreads<Base::NUM_THREADS>>;
  static constexpr int SLICES = slices;
  static constexpr int BLOCK_THREADS = Base::NUM_THREADS * slices;
  // The block's dynamic shared memory: the rings, then each slice's tables of the loaders.
  static constexpr int TABLES = Base::RING_BYTES * slices;
  static constexpr int TABLE_BYTES = 16 * (Base::BLOCK_M + Base::BLOCK_N);
  static constexpr int SHARED_BYTES = TABLES + TABLE_BYTES * slices;

  static __device__ __forceinline__ int slice() {
    return slices == 1 ? 0 : static_cast<int>(threadIdx.x) / Base::NUM_THREADS;
  }
};

// What a slice has of gemm_k: as many tiles as the others, some of them maybe behind its end.
template <class Tile>
__device__ __forceinline__ int slice_tiles(int gemm_k) {
  constexpr int SPAN = Tile::BLOCK_K * Tile::SLICES;
  return (gemm_k + SPAN - 1) / SPAN;
}

// Gives every four columns of C to `store` (m, columns of at(n), values). All threads of the block.
template <class Tile, class Warp, class Store>
__device__ __forceinline__ void sliced_epilogue(const Warp& warp, const Store& store,
                                                unsigned char* shared) {
  float* const mine = reinterpret_cast<float*>(shared + Tile::slice() * Tile::RING_BYTES);
  if constexpr (Warp::PAIRS) {
    warp.visit([&](int m, int n, float v0, float v1) {
      *reinterpret_cast<float2*>(mine + gemm_place<Tile>(m, n)) = make_float2(v0, v1);
    });
  } else {
    warp.visit([&](int m, int n, float v) { mine[gemm_place<Tile>(m, n)] = v; });
  }
  __syncthreads();
  constexpr int COLUMNS4 = Tile::BLOCK_N / 4, ROW_STEP = Tile::BLOCK_THREADS / COLUMNS4;
  static_assert(Tile::BLOCK_THREADS % COLUMNS4 == 0 && Tile::BLOCK_M % ROW_STEP == 0);
  const int n = threadIdx.x % COLUMNS4 * 4;
  const auto columns = store.at(n);
#pragma unroll 1
  for (int m = threadIdx.x / COLUMNS4; m < Tile::BLOCK_M; m += ROW_STEP) {
    const unsigned char* from = shared + gemm_place<Tile>(m, n) * sizeof(float);
    float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int slice = 1; slice < Tile::SLICES; ++slice) {
      const float4 v = *reinterpret_cast<const float4*>(from + slice * Tile::RING_BYTES);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    store.store(m, columns, sum);
  }
}

}  // namespace fastconv::cuda
