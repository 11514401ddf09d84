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
  scalar_t* const stages = reinterpret_cast<scalar_t*>(ring);
#pragma unroll 1
  for (int slot = 0; slot < STAGES - 1; ++slot) {
    if (slot < k_tiles) {
      a.fetch(stages);
      b.fetch(stages);
      a.store(stages);
      b.store(stages);
    }
    a.move(Tile::STAGE);
    b.move(Tile::STAGE);
    cp_async_commit();  // an empty group keeps the count that the waits below rely on
  }
  int read = 0, write = STAGES - 1;
#pragma unroll 1
  for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    const bool more = k_tile + STAGES - 1 < k_tiles;
    if (more) {
      a.fetch(stages);
      b.fetch(stages);
    }
    cp_async_commit();
    warp.multiply(stages);
    if (more) {
      a.store(stages);
      b.store(stages);
    }
    const auto next = [](int& slot) {
      slot = slot + 1 == STAGES ? 0 : slot + 1;
      return slot == 0 ? Tile::STAGE * (1 - STAGES) : Tile::STAGE;
    };
    warp.move(next(read));
    const int step = next(write);
    a.move(step);
    b.move(step);
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

  // Four columns, the same for all the rows that a thread writes.
  struct Columns {
    int offset[4];  // < 0: there is none
    float bias[4];
  };
  __device__ __forceinline__ Columns at(int n) const {
    Columns c;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Coordinate column = columns.at(n + e);
      c.offset[e] = column.d < 0 ? -1 : column.offset;
      c.bias[e] = 0.0f;
      if (BIAS == GemmBias::kPerColumn && bias != nullptr && column.d >= 0)
        c.bias[e] = to_acc(bias[n + e]);
    }
    return c;
  }

  __device__ __forceinline__ void operator()(int m, const Columns& c, float4 v) const {
    const Coordinate row = rows.at(m);
    if (row.d < 0) return;
    float add = 0.0f;
    if (BIAS == GemmBias::kPerRow && bias != nullptr) add = to_acc(bias[m]);
    float values[4] = {v.x, v.y, v.z, v.w};
    if constexpr (BIAS != GemmBias::kNone) {
#pragma unroll
      for (int e = 0; e < 4; ++e) values[e] += BIAS == GemmBias::kPerRow ? add : c.bias[e];
    }
    out_t* to = base + row.offset;
    if (vec4) {
      if (c.offset[0] >= 0) store4(to + c.offset[0], values);
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (c.offset[e] >= 0) to[c.offset[e]] = from_acc<out_t>(values[e]);
  }

  static __device__ __forceinline__ void store4(out_t* to, const float (&v)[4]) {
    struct alignas(4 * sizeof(out_t)) Four {
      out_t e[4];
    };
    *reinterpret_cast<Four*>(to) = {{from_acc<out_t>(v[0]), from_acc<out_t>(v[1]),
                                     from_acc<out_t>(v[2]), from_acc<out_t>(v[3])}};
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
  constexpr int COLUMNS4 = Tile::BLOCK_N / 4, ROW_STEP = Tile::NUM_THREADS / COLUMNS4;
  static_assert(Tile::NUM_THREADS % COLUMNS4 == 0 && Tile::BLOCK_M % ROW_STEP == 0);
  const int n = threadIdx.x % COLUMNS4 * 4;
  const auto columns = store.at(n);
#pragma unroll 1
  for (int m = threadIdx.x / COLUMNS4; m < Tile::BLOCK_M; m += ROW_STEP)
    store(m, columns, *reinterpret_cast<const float4*>(tile + place(m, n)));
}

// The block's shared memory: the ring, then the loaders' tables.
template <class Tile, class LoaderA, class LoaderB>
constexpr int gemm_shared_bytes() {
  return Tile::RING_BYTES + LoaderA::TABLE_BYTES + LoaderB::TABLE_BYTES;
}

}  // namespace fastconv::cuda
