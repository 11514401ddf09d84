// The matrix product of one block, C [BLOCK_M, BLOCK_N] = A [BLOCK_M, gemm_k] * B [gemm_k,
// BLOCK_N], for operands that two loaders (gemm_loader.cuh) describe:
//
//   mainloop: a ring of NUM_STAGES stages in shared memory. While the warps multiply one stage,
//   cp.async fills the ones behind it; one barrier per BLOCK_K, which both publishes the stage that
//   has landed and frees the one that was read last.
//   epilogue: accumulators pass through the same memory, so that every warp writes whole rows.
//
// Bytes from L2 per BLOCK_K: 64 (BLOCK_M + BLOCK_N), for 2 BLOCK_M BLOCK_N BLOCK_K FLOPs.
// Deterministic: one thread owns an element of C and adds over gemm_k in ascending order.
// Speed: not measured on a GPU.
#pragma once
#include "gemm_loader.cuh"
#include "gemm_warp.cuh"

namespace fastconv::cuda {

// `k_tiles` (>= 0) is the same for all threads. All threads of the block take part; on return the
// ring is free again.
template <class Tile, class Warp, class LoaderA, class LoaderB>
__device__ __forceinline__ void gemm_mainloop(Warp& warp, LoaderA& a, LoaderB& b, int k_tiles,
                                              unsigned char* ring) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int STAGES = Tile::NUM_STAGES;
  const auto stage_a = [ring](int slot) {
    return reinterpret_cast<scalar_t*>(ring + slot * Tile::STAGE_BYTES);
  };
  const auto stage_b = [ring](int slot) {
    return reinterpret_cast<scalar_t*>(ring + slot * Tile::STAGE_BYTES + Tile::A_BYTES);
  };
#pragma unroll 1
  for (int slot = 0; slot < STAGES - 1; ++slot) {
    if (slot < k_tiles) {
      a.fetch(stage_a(slot));
      b.fetch(stage_b(slot));
      a.store(stage_a(slot));
      b.store(stage_b(slot));
    }
    cp_async_commit();  // an empty group keeps the count that the waits below rely on
  }
  int read = 0, write = STAGES - 1;
#pragma unroll 1
  for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    const bool more = k_tile + STAGES - 1 < k_tiles;
    if (more) {
      a.fetch(stage_a(write));
      b.fetch(stage_b(write));
    }
    cp_async_commit();
    warp.multiply(stage_a(read), stage_b(read));
    if (more) {
      a.store(stage_a(write));
      b.store(stage_b(write));
    }
    read = read + 1 == STAGES ? 0 : read + 1;
    write = write + 1 == STAGES ? 0 : write + 1;
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Where C goes: element (m, n) of the tile to base + rows(m).offset + columns(n).offset.
enum class GemmBias { kNone, kPerRow, kPerColumn };

template <class out_t, class RowMap, class ColumnMap, GemmBias BIAS = GemmBias::kNone>
struct GemmStore {
  out_t* base;
  RowMap rows;
  ColumnMap columns;
  // Groups of four columns that start at a multiple of four lie four in a row in memory, aligned to
  // 4 sizeof(out_t), and are inside or outside together.
  bool vec4;
  const out_t* bias;  // of the tile's first row or column; may be null

  __device__ __forceinline__ void operator()(int m, int n, float4 v) const {
    const Coordinate row = rows.at(m);
    if (row.d < 0) return;
    if (BIAS == GemmBias::kPerRow && bias != nullptr) {
      const float add = to_acc(bias[m]);
      v.x += add, v.y += add, v.z += add, v.w += add;
    }
    if (vec4) {
      const Coordinate column = columns.at(n);
      if (column.d < 0) return;
      if (BIAS == GemmBias::kPerColumn && bias != nullptr) {
        v.x += to_acc(bias[n]), v.y += to_acc(bias[n + 1]);
        v.z += to_acc(bias[n + 2]), v.w += to_acc(bias[n + 3]);
      }
      store4(base + row.offset + column.offset, v);
      return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Coordinate column = columns.at(n + e);
      if (column.d < 0) continue;
      const bool add = BIAS == GemmBias::kPerColumn && bias != nullptr;
      base[row.offset + column.offset] =
          from_acc<out_t>(add ? values[e] + to_acc(bias[n + e]) : values[e]);
    }
  }

  static __device__ __forceinline__ void store4(float* to, float4 v) {
    *reinterpret_cast<float4*>(to) = v;
  }
  template <class T>
  static __device__ __forceinline__ void store4(T* to, float4 v) {
    struct alignas(4 * sizeof(T)) Four {
      T x, y, z, w;
    };
    *reinterpret_cast<Four*>(to) = {from_acc<T>(v.x), from_acc<T>(v.y), from_acc<T>(v.z),
                                    from_acc<T>(v.w)};
  }
};

// Gives every four columns of C to `store`. `tile`: BLOCK_M BLOCK_N floats of shared memory.
template <class Tile, class Warp, class Store>
__device__ __forceinline__ void gemm_epilogue(const Warp& warp, const Store& store, float* tile) {
  // [BLOCK_M, BLOCK_N], 16-byte chunks permuted so that the rows of a fragment use all banks.
  const auto place = [](int m, int n) {
    return m * Tile::BLOCK_N + (((n / 4) ^ ((m & 3) * 2)) * 4) + n % 4;
  };
  if constexpr (Warp::PAIRS) {
    warp.visit([&](int m, int n, float v0, float v1) {
      *reinterpret_cast<float2*>(tile + place(m, n)) = make_float2(v0, v1);
    });
  } else {
    warp.visit([&](int m, int n, float v) { tile[place(m, n)] = v; });
  }
  __syncthreads();
  constexpr int COLUMNS4 = Tile::BLOCK_N / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < Tile::BLOCK_M * COLUMNS4; i += Tile::NUM_THREADS) {
    const int m = i / COLUMNS4, n = i % COLUMNS4 * 4;
    store(m, n, *reinterpret_cast<const float4*>(tile + place(m, n)));
  }
}

// The block's shared memory: the ring, then the loaders' tables.
template <class Tile, class LoaderA, class LoaderB>
constexpr int gemm_shared_bytes() {
  return Tile::RING_BYTES + LoaderA::TABLE_BYTES + LoaderB::TABLE_BYTES;
}

}  // namespace fastconv::cuda
