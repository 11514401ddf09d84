// The matrix product of one block, C [BLOCK_M, BLOCK_N] = A [BLOCK_M, gemm_k] * B [gemm_k,
// BLOCK_N], for operands that two loaders (gemm_loader.cuh) describe:
//
//   mainloop: a ring of NUM_STAGES stages in shared memory. While the warps multiply one stage,
//   cp.async fills the ones behind it; one barrier per BLOCK_K, which both publishes the stage that
//   has landed and frees the one that was read last.
//   epilogue: accumulators pass through the same memory, so that every warp writes whole rows.
//
// Per stage, 64 (BLOCK_M + BLOCK_N) bytes come from L2 for 2 BLOCK_M BLOCK_N BLOCK_K FLOPs; through
// shared memory go these once and 64 (WARP_M + WARP_N) per warp. Predicted from the rates of
// device_rates.h for sm_90 and 128 bytes of shared memory per clock and SM:
//
//   tile             FLOPs per byte of L2   L2 alone allows   clocks per stage and SM: shared, math
//   128x128 16-bit            64             352 TFLOP/s                512, 435 (mma.sync)
//   128x128 TF32              32             176                        512, 435
//   128x64  16-bit, TF32      43, 21         235, 117                   352, 218
//   64x64   16-bit, TF32      32, 16         176, 88                    192, 109
//   128x64  TF32x3           21                  117                  288, 653 (90 TFLOP/s), and
//                                                                  some 500 of splitting and adding
//   128x64  FFMA              21             117                        288, 1024 (57 TFLOP/s)
//
// So shared memory bounds the tiles of one product, by little more than mma.sync where they are
// wide; three products are bound by what surrounds them, and FFMA by its own pipe. The bf16 NHWC
// fprop loop of 128x128, as nvcc 13.0 compiles it for sm_90a, has 133 instructions: 32 HMMA, 12
// LDSM, 4 LDGSTS of 16 bytes, and 85 of addresses and loop; two warps to a scheduler issue 266 in
// the 512 clocks.
//
// Deterministic: one thread owns an element of C and adds over gemm_k in ascending order.
// Speed: not measured on a GPU.
#pragma once
#include <cstring>
#include <type_traits>

#include "epilogue.cuh"
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
  const auto next = [](int& slot) {  // and how far it is to there
    slot = slot + 1 == STAGES ? 0 : slot + 1;
    return slot == 0 ? Tile::STAGE * (1 - STAGES) : Tile::STAGE;
  };
  int read = 0, write = 0;
  // The first STAGES - 1 rounds only fill.
#pragma unroll 1
  for (int k_tile = 1 - STAGES; k_tile < k_tiles; ++k_tile) {
    if (k_tile >= 0) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
    }
    const bool more = k_tile + STAGES - 1 < k_tiles;
    if (more) {
      a.fetch(stages);
      b.fetch(stages);
    }
    cp_async_commit();  // an empty group keeps the count that the wait relies on
    if (k_tile >= 0) {
      warp.multiply(stages);
      warp.move(next(read));
    }
    if (more) {
      a.store(stages);
      b.store(stages);
    }
    const int step = next(write);
    a.move(step);
    b.move(step);
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Four neighbours that lie aligned to all of them. By the function of such a store: where a branch
// stores single ones, nvcc would take an assignment apart to share its pieces with that. Nobody
// reads the result from this SM's L1.
template <class out_t>
__device__ __forceinline__ void store_four(out_t* to, const float (&from)[4]) {
  using Word = std::conditional_t<sizeof(out_t) == 4, float4, uint2>;
  out_t values[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) values[e] = from_acc<out_t>(from[e]);
  Word word;
  static_assert(sizeof(word) == sizeof(values));
  memcpy(&word, values, sizeof(word));
  __stcg(reinterpret_cast<Word*>(to), word);
}

// Where C goes: element (m, n) of the tile to base + rows(m).offset + columns(n).offset.
enum class GemmBias { kNone, kPerRow, kPerColumn };

// What becomes of a value between its bias and its store. Where the residual of element (m, n)
// is: as C, to residual + rows(m).offset + columns(n).offset.
struct GemmNoEpilogue {
  static constexpr bool EXISTS = false;
};
template <class out_t, class RowMap, class ColumnMap>
struct GemmEpilogue {
  static constexpr bool EXISTS = true;
  const StoreEpilogue<float>& with;
  const out_t* residual;
  RowMap rows;
  ColumnMap columns;
  bool vec4;  // as GemmStore's, of the residual
};

template <class out_t, class RowMap, class ColumnMap, GemmBias BIAS = GemmBias::kNone,
          class Epilogue = GemmNoEpilogue>
struct GemmStore {
  out_t* base;
  RowMap rows;
  ColumnMap columns;
  // Groups of four columns that start at a multiple of four lie four in a row in memory, aligned to
  // 4 sizeof(out_t), and are inside or outside together.
  bool vec4;
  const out_t* bias;  // of the tile's first row or column; may be null
  Epilogue epilogue;

  // Offsets of the rows, then of the columns, < 0 where there is none: [BLOCK_M + BLOCK_N] in
  // shared memory; then the same of the residual. Holds those that cost more than a multiplication;
  // a barrier must follow.
  template <class Tile>
  __device__ __forceinline__ void fill(int* table) const {
    const auto put = [&](const auto& map, int* to, int extent) {
      if constexpr (!std::decay_t<decltype(map)>::CHEAP) {
        for (int i = threadIdx.x; i < extent; i += Tile::NUM_THREADS) {
          const Coordinate c = map.at(i);
          to[i] = c.d < 0 ? -1 : c.offset;
        }
      }
    };
    put(rows, table, Tile::BLOCK_M);
    put(columns, table + Tile::BLOCK_M, Tile::BLOCK_N);
    if constexpr (Epilogue::EXISTS) {
      if (epilogue.with.residual != nullptr) {
        int* const more = table + Tile::BLOCK_M + Tile::BLOCK_N;
        put(epilogue.rows, more, Tile::BLOCK_M);
        put(epilogue.columns, more + Tile::BLOCK_M, Tile::BLOCK_N);
      }
    }
  }
  template <class Map>
  static __device__ __forceinline__ int offset(const Map& map, const int* table, int i) {
    if constexpr (!Map::CHEAP) return table[i];
    const Coordinate c = map.at(i);
    return c.d < 0 ? -1 : c.offset;
  }

  // Four columns, the same for all the rows that a thread writes.
  struct Columns {
    int offset[4];
    float bias[4];
    int residual[Epilogue::EXISTS ? 4 : 1];
  };
  template <class Tile>
  __device__ __forceinline__ Columns at(int n, const int* table) const {
    Columns c;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      c.offset[e] = offset(columns, table + Tile::BLOCK_M, n + e);
      if constexpr (Epilogue::EXISTS) {
        c.residual[e] = 0;
        if (epilogue.with.residual != nullptr)
          c.residual[e] =
              offset(epilogue.columns, table + 2 * Tile::BLOCK_M + Tile::BLOCK_N, n + e);
      }
      c.bias[e] = 0.0f;
      if (BIAS == GemmBias::kPerColumn && bias != nullptr && c.offset[e] >= 0)
        c.bias[e] = to_acc(bias[n + e]);
    }
    return c;
  }

  template <class Tile>
  __device__ __forceinline__ void store(int m, const int* table, const Columns& c, float4 v) const {
    const int row = offset(rows, table, m);
    if (row < 0) return;
    float add = 0.0f;
    if (BIAS == GemmBias::kPerRow && bias != nullptr) add = to_acc(bias[m]);
    float values[4] = {v.x, v.y, v.z, v.w};
    if constexpr (BIAS != GemmBias::kNone) {
#pragma unroll
      for (int e = 0; e < 4; ++e) values[e] += BIAS == GemmBias::kPerRow ? add : c.bias[e];
    }
    if constexpr (Epilogue::EXISTS) {
      if (epilogue.with.any)
        apply_epilogue(epilogue.with, values, [&](float(&r)[4]) {
          const int* const more = table + Tile::BLOCK_M + Tile::BLOCK_N;
          const out_t* from = epilogue.residual + offset(epilogue.rows, more, m);
          if (epilogue.vec4) {
            if (c.residual[0] >= 0) load_aligned(from + c.residual[0], r);
          } else {
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (c.residual[e] >= 0) r[e] = to_acc(from[c.residual[e]]);
          }
        });
    }
    out_t* to = base + row;
    if (vec4) {
      if (c.offset[0] >= 0) store_four(to + c.offset[0], values);
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (c.offset[e] >= 0) to[c.offset[e]] = from_acc<out_t>(values[e]);
  }
};

// Where the epilogue has C's element (m, n) in shared memory: [BLOCK_M, BLOCK_N], 16-byte chunks
// permuted so that the rows of a fragment use all banks.
template <class Tile>
__device__ __forceinline__ int gemm_place(int m, int n) {
  return m * Tile::BLOCK_N + (((n / 4) ^ ((m & 3) * 2)) * 4) + n % 4;
}

// Gives every four columns of C to `store`. C itself stays in shared memory. `shared`: the block's,
// the ring and what follows it.
template <class Tile, class Warp, class Store>
__device__ __forceinline__ void gemm_epilogue(const Warp& warp, const Store& store,
                                              unsigned char* shared) {
  float* const tile = reinterpret_cast<float*>(shared);
  int* const offsets = reinterpret_cast<int*>(shared + Tile::RING_BYTES);
  store.template fill<Tile>(offsets);
  if constexpr (Warp::PAIRS) {
    warp.visit([&](int m, int n, float v0, float v1) {
      *reinterpret_cast<float2*>(tile + gemm_place<Tile>(m, n)) = make_float2(v0, v1);
    });
  } else {
    warp.visit([&](int m, int n, float v) { tile[gemm_place<Tile>(m, n)] = v; });
  }
  __syncthreads();
  constexpr int COLUMNS4 = Tile::BLOCK_N / 4, ROW_STEP = Tile::NUM_THREADS / COLUMNS4;
  static_assert(Tile::NUM_THREADS % COLUMNS4 == 0 && Tile::BLOCK_M % ROW_STEP == 0);
  const int n = threadIdx.x % COLUMNS4 * 4;
  const auto columns = store.template at<Tile>(n, offsets);
#pragma unroll 1
  for (int m = threadIdx.x / COLUMNS4; m < Tile::BLOCK_M; m += ROW_STEP)
    store.template store<Tile>(m, offsets, columns,
                               *reinterpret_cast<const float4*>(tile + gemm_place<Tile>(m, n)));
}

// The block's dynamic shared memory: the ring, then tables of coordinates (of the loaders, then of
// the store) and whatever else a kernel keeps there.
template <class Tile>
constexpr int gemm_shared_bytes(int else_bytes = 0) {
  return Tile::RING_BYTES + 16 * (Tile::BLOCK_M + Tile::BLOCK_N) + else_bytes;
}

}  // namespace fastconv::cuda
