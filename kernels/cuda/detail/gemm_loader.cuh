// Tile iterators: how one operand of a block's matrix product gets from global memory into a stage
// of shared memory. The operand need not exist as a matrix: element (mn, k) is read at
//   base + MnMap(mn).offset + KMap(k).offset,
// (bytes from base: below 2^32) and is zero where the sum of the two coordinates leaves a box (the
// tensor without its padding) or where either map says that there is nothing. That form covers
// plain matrices as well as the implicit column matrix of a convolution, whose pixels and filter
// taps add up that way. Instead of coordinates an mn may carry a mask of the taps that it has (one
// bit each), and a k its tap.
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

  int offset;  // elements; bytes in what GemmLoader keeps
  int d, h, w;
};

// What makes an element zero instead of read.
enum class GemmCheck {
  kSign,  // d < 0 in the sum
  kBox,   // (d, h, w) of the sum outside of the box
  kMask,  // bit d of k is not set in d (low word) and h (high word) of mn
};
constexpr int kMaskTaps = 63;  // with a mask: tap 63 never exists

// The tensor that the coordinates run over, without its padding.
struct Box {
  int extent[3];  // D, H, W
};

// A row index with a stride: the whole of a plain matrix's addressing.
struct StrideMap {
  static constexpr bool CHEAP = true;  // to evaluate: every MnMap says so
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

// `Threads`: which of NUM_THREADS a thread is.
template <class Operand, int NUM_THREADS, int VEC, GemmCheck CHECK, class MnMap, class KMap,
          class Threads = BlockThreads>
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
  // The tile's gemm_m (gemm_n) coordinates stay the same for all of gemm_k. Each is computed by one
  // thread, in a table in shared memory, where it costs more than a multiplication; a thread keeps
  // up to four in registers, and looks more of them up every time.
  static constexpr bool TABLE = !MnMap::CHEAP || MN_COUNT > 4;
  static constexpr bool KEPT_IN_TABLE = MN_COUNT > 4;
  static_assert(VEC == 1 || BYTES == 16);
  static_assert((ROW_STEP & (ROW_STEP - 1)) == 0 && (LANES & (LANES - 1)) == 0);
  static_assert(NUM_THREADS % LANES == 0 && Operand::ROWS % ROW_STEP == 0);

 public:
  static constexpr int TABLE_BYTES = TABLE ? Operand::EXTENT * 16 : 0;

  // `part`: where the operand lies in a stage, in elements. `table`: TABLE_BYTES of shared memory;
  // a barrier must follow before the first fetch.
  __device__ __forceinline__ GemmLoader(const scalar_t* base, const MnMap& mn_map,
                                        const KMap& k_map, const Box& box, int part,
                                        unsigned char* table)
      : base_(reinterpret_cast<const unsigned char*>(base)),
        k_map_(k_map),
        box_(box),
        to_(part + Operand::offset(row(0), unit(0) * VEC)),
        table_(reinterpret_cast<Coordinate*>(table)) {
    if constexpr (TABLE) {
      for (int i = Threads::index(); i < Operand::EXTENT; i += NUM_THREADS)
        table_[i] = in_bytes(mn_map.at(i));
    } else {
      take([&](int i) { return in_bytes(mn_map.at(i)); });
    }
  }

  // To be called once, behind a barrier that follows the construction.
  __device__ __forceinline__ void start() {
    if constexpr (TABLE && !KEPT_IN_TABLE) take([&](int i) { return table_[i]; });
  }

  // Starts the copy of the next BLOCK_K into the present stage.
  __device__ __forceinline__ void fetch(scalar_t* ring) {
#pragma unroll
    for (int j = 0; j < K_COUNT; ++j) {
      const Coordinate k = in_bytes(k_map_.at(K_CONTIGUOUS ? unit(j) * VEC : row(j)));
#pragma unroll
      for (int i = 0; i < MN_COUNT; ++i) {
        const Coordinate mn = KEPT_IN_TABLE ? table_[row(i)] : mn_[i];
        // What is valid lies behind the base: an unsigned offset saves the sign's extension.
        const unsigned char* from =
            base_ + (static_cast<uint32_t>(mn.offset) + static_cast<uint32_t>(k.offset));
        const bool valid = inside(mn, k);
        if constexpr (STAGED)
          staged_[j][i] =
              valid ? *reinterpret_cast<const scalar_t*>(from) : from_acc<scalar_t>(0.0f);
        else
          cp_async<BYTES>(ring + place(i, j), from, valid);
      }
    }
    base_ += k_map_.advance() * static_cast<int>(sizeof(scalar_t));
  }

  // Ends a fetch whose copy went through registers.
  __device__ __forceinline__ void store(scalar_t* ring) const {
    if constexpr (STAGED) {
#pragma unroll
      for (int j = 0; j < K_COUNT; ++j)
#pragma unroll
        for (int i = 0; i < MN_COUNT; ++i) ring[place(i, j)] = staged_[j][i];
    }
  }

  // To the stage `elements` further on.
  __device__ __forceinline__ void move(int elements) { to_ += elements; }

 private:
  static __device__ __forceinline__ int row(int i) {
    return Threads::index() / LANES + i * ROW_STEP;
  }
  static __device__ __forceinline__ int unit(int i) { return Threads::index() % LANES + i * LANES; }
  template <class F>
  __device__ __forceinline__ void take(const F& coordinate) {
#pragma unroll
    for (int i = 0; i < MN_COUNT; ++i) mn_[i] = coordinate(K_CONTIGUOUS ? row(i) : unit(i) * VEC);
  }
  // mn-th gemm_m (gemm_n), k-th gemm_k of the thread.
  __device__ __forceinline__ int place(int mn, int k) const {
    return Operand::moved(to_, (K_CONTIGUOUS ? mn : k) * ROW_STEP,
                          (K_CONTIGUOUS ? k : mn) * LANES * VEC);
  }
  static __device__ __forceinline__ Coordinate in_bytes(Coordinate c) {
    c.offset = static_cast<int>(static_cast<uint32_t>(c.offset) * sizeof(scalar_t));
    return c;
  }
  __device__ __forceinline__ bool inside(const Coordinate& mn, const Coordinate& k) const {
    if constexpr (CHECK == GemmCheck::kSign) {
      return mn.d + k.d >= 0;
    } else if constexpr (CHECK == GemmCheck::kMask) {
      const uint64_t mask =
          static_cast<uint64_t>(static_cast<uint32_t>(mn.h)) << 32 | static_cast<uint32_t>(mn.d);
      return (mask >> k.d & 1) != 0;
    } else {
      return static_cast<unsigned>(mn.d + k.d) < static_cast<unsigned>(box_.extent[0]) &&
             static_cast<unsigned>(mn.h + k.h) < static_cast<unsigned>(box_.extent[1]) &&
             static_cast<unsigned>(mn.w + k.w) < static_cast<unsigned>(box_.extent[2]);
    }
  }

  const unsigned char* base_;
  KMap k_map_;
  Box box_;
  // The thread's first element in the present stage. Carried through the loop, not computed from
  // the stage's number, so that the compiler does not derive it from the thread's index every time.
  int to_;
  Coordinate* table_;
  Coordinate mn_[KEPT_IN_TABLE ? 1 : MN_COUNT];
  scalar_t staged_[STAGED ? K_COUNT : 1][STAGED ? MN_COUNT : 1];
};

}  // namespace fastconv::cuda
