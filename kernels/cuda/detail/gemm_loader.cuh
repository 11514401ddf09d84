// Tile iterators: how one operand of a block's matrix product gets from global memory into a stage
// of shared memory. The operand need not exist as a matrix: element (mn, k) is read at
//   base + MnMap(mn).offset + KMap(k).offset,
// and is zero where the sum of the two coordinates leaves a box (the tensor without its padding) or
// where either map says that there is nothing. That form covers plain matrices as well as the
// implicit column matrix of a convolution, whose pixels and filter taps add up that way.
//
// A map answers `Coordinate at(int i)` for i within the tile; a KMap also has
// `int64_t advance()`: go to the next BLOCK_K, and return by how many elements the base moves.
//
// VEC elements travel at once, along the axis that is contiguous in the stage: 16 bytes by cp.async
// (all VEC of them must then be contiguous in memory, aligned, and alike in validity, which the
// launcher sees to), or one element, by cp.async where it has 4 bytes and through a register where
// it has 2 (cp.async cannot), loaded before the warps multiply and stored after.
#pragma once
#include "async_copy.cuh"
#include "gemm_tile.cuh"
#include "scalar.cuh"

namespace fastconv::cuda {

struct alignas(16) Coordinate {
  static constexpr int NOTHING = -(1 << 30);  // in d: outside of every box, whatever is added

  int offset;   // elements
  int d, h, w;  // d < 0 in the sum: zero
};

// The tensor that the coordinates run over, without its padding.
struct Box {
  int extent[3];  // D, H, W
};

// A row index with a stride: the whole of a plain matrix's addressing.
struct StrideMap {
  int stride, extent;

  __device__ __forceinline__ Coordinate at(int i) const {
    return {i * stride, i < extent ? 0 : Coordinate::NOTHING, 0, 0};
  }
};

template <int BLOCK_K>
struct StrideKMap {
  int stride, left;

  __device__ __forceinline__ Coordinate at(int k) const {
    return {k * stride, k < left ? 0 : Coordinate::NOTHING, 0, 0};
  }
  __device__ __forceinline__ int64_t advance() {
    left -= BLOCK_K;
    return static_cast<int64_t>(BLOCK_K) * stride;
  }
};

// BOUNDED: the coordinates are checked against the box, else only d against NOTHING.
template <class Operand, int NUM_THREADS, int VEC, bool BOUNDED, class MnMap, class KMap>
class GemmLoader {
  using scalar_t = typename Operand::scalar_t;
  static constexpr int BYTES = VEC * static_cast<int>(sizeof(scalar_t));
  static constexpr bool STAGED = BYTES < 4;
  static constexpr int UNITS = Operand::COLS / VEC;  // per row of the stage
  static constexpr int LANES = UNITS < 32 ? UNITS : 32;
  static constexpr int UNIT_STEPS = UNITS / LANES;
  static constexpr int ROW_STEP = NUM_THREADS / LANES, ROW_STEPS = Operand::ROWS / ROW_STEP;
  static constexpr bool K_CONTIGUOUS = Operand::K_CONTIGUOUS;
  static constexpr int MN_COUNT = K_CONTIGUOUS ? ROW_STEPS : UNIT_STEPS;
  static constexpr int K_COUNT = K_CONTIGUOUS ? UNIT_STEPS : ROW_STEPS;
  // The tile's gemm_m (gemm_n) coordinates stay the same for all of gemm_k. A few stay in
  // registers; more are kept in a table in shared memory.
  static constexpr bool TABLE = MN_COUNT > 4;
  static_assert(VEC == 1 || BYTES == 16);
  static_assert(NUM_THREADS % LANES == 0 && Operand::ROWS % ROW_STEP == 0);

 public:
  static constexpr int TABLE_BYTES = TABLE ? Operand::EXTENT * 16 : 0;

  // `table`: TABLE_BYTES of shared memory; a barrier must follow before the first fetch.
  __device__ __forceinline__ GemmLoader(const scalar_t* base, const MnMap& mn_map,
                                        const KMap& k_map, const Box& box, unsigned char* table)
      : base_(base), k_map_(k_map), box_(box), table_(reinterpret_cast<Coordinate*>(table)) {
    if constexpr (TABLE) {
      for (int i = threadIdx.x; i < Operand::EXTENT; i += NUM_THREADS) table_[i] = mn_map.at(i);
    } else {
#pragma unroll
      for (int i = 0; i < MN_COUNT; ++i) mn_[i] = mn_map.at(K_CONTIGUOUS ? row(i) : unit(i) * VEC);
    }
  }

  // Starts the copy of the next BLOCK_K into `stage`.
  __device__ __forceinline__ void fetch(scalar_t* stage) {
#pragma unroll
    for (int j = 0; j < K_COUNT; ++j) {
      const Coordinate k = k_map_.at(K_CONTIGUOUS ? unit(j) * VEC : row(j));
#pragma unroll
      for (int i = 0; i < MN_COUNT; ++i) {
        const Coordinate mn = TABLE ? table_[row(i)] : mn_[i];
        const scalar_t* from = base_ + (mn.offset + k.offset);
        const bool valid = inside(mn, k);
        if constexpr (STAGED)
          staged_[j][i] = valid ? *from : from_acc<scalar_t>(0.0f);
        else
          cp_async<BYTES>(stage + place(i, j), from, valid);
      }
    }
    base_ += k_map_.advance();
  }

  // Ends a fetch whose copy went through registers; `stage` as given to it.
  __device__ __forceinline__ void store(scalar_t* stage) const {
    if constexpr (STAGED) {
#pragma unroll
      for (int j = 0; j < K_COUNT; ++j)
#pragma unroll
        for (int i = 0; i < MN_COUNT; ++i) stage[place(i, j)] = staged_[j][i];
    }
  }

 private:
  static __device__ __forceinline__ int row(int i) { return threadIdx.x / LANES + i * ROW_STEP; }
  static __device__ __forceinline__ int unit(int i) { return threadIdx.x % LANES + i * LANES; }
  // mn-th gemm_m (gemm_n), k-th gemm_k of the thread.
  static __device__ __forceinline__ int place(int mn, int k) {
    return Operand::offset(row(K_CONTIGUOUS ? mn : k), unit(K_CONTIGUOUS ? k : mn) * VEC);
  }
  __device__ __forceinline__ bool inside(const Coordinate& a, const Coordinate& b) const {
    if constexpr (!BOUNDED) return a.d + b.d >= 0;
    return static_cast<unsigned>(a.d + b.d) < static_cast<unsigned>(box_.extent[0]) &&
           static_cast<unsigned>(a.h + b.h) < static_cast<unsigned>(box_.extent[1]) &&
           static_cast<unsigned>(a.w + b.w) < static_cast<unsigned>(box_.extent[2]);
  }

  const scalar_t* base_;
  KMap k_map_;
  Box box_;
  Coordinate* table_;
  Coordinate mn_[TABLE ? 1 : MN_COUNT];
  scalar_t staged_[STAGED ? K_COUNT : 1][STAGED ? MN_COUNT : 1];
};

}  // namespace fastconv::cuda
