// What the blocks of a persistent convolution by TMA do one after the other: stretches of tiles'
// gemm_k, either whole tiles alone or, in addition, parts of those for which no whole round of
// clusters is left.
//
// Sums of a part go through L2: 4 BLOCK_M BLOCK_N bytes written by each block at most once, and
// read once; what that takes is as many multiplications as some 10 to 20 stages. Not measured on a
// GPU.
//
// Source: Osama et al., "Stream-K: Work-centric parallel decomposition for dense matrix-matrix
// multiplication on the GPU", 2023: the hybrid that shares the last whole round together with what
// is left. Flags that need no zeroing are this project's.
#pragma once
#include "conv_tma_params.cuh"
#include "release_flag.cuh"

namespace fastconv::cuda {

// Whole tiles, as far apart as there are clusters; of a split gemm_k the block's slice of each.
struct ConvTmaTiles {
  struct Params {};
  static constexpr bool kStreams = false;
  int tile, tiles, step;
  int k_begin, k_end;

  __device__ __forceinline__ ConvTmaTiles(const ConvTmaParams& p, const Params&,
                                          const ConvTmaPart& part)
      : tile(static_cast<int>(p.cluster.div(blockIdx.x))),
        tiles(p.tiles),
        step(static_cast<int>(p.cluster.div(gridDim.x))),
        k_begin(part.k_begin),
        k_end(part.k_end) {}
  __device__ __forceinline__ bool more() const { return tile < tiles; }
  __device__ __forceinline__ void advance() { tile += step; }
};

// Stream-K. The first `whole` tiles are done as above, in whole rounds; the k_tiles of the others
// are one row that is cut evenly, a stretch to a cluster. A cluster's own order is: the end of its
// stretch, where that begins a tile which the next cluster ends; whole tiles; last its beginning,
// which ends a tile. It leaves the sums of the first in memory and goes on; to the last it adds
// what clusters before it have left, downwards from the one before, and stores. So it waits for
// those only, and for what they do first.
//
// left: [blocks][BLOCK_M BLOCK_N / 4 / THREADS][THREADS] float4, THREADS those that multiply: each
// writes and reads its own accumulators, which are the same part of a tile in all blocks of a rank,
// through L2 and past L1. A warp's have a flag of their own: [blocks][warps].
//
// Flags need not be zero beforehand: they carry the launch's number, of 64 bits, which the host
// takes from a sequence that does not repeat, and which is taken away again by whoever has waited
// for it. So a replay of the same launch, with the same number, does not see what the last one
// left, and other launches have other numbers. What else may have lain there equals it with a
// probability of 2^-64.
struct ConvTmaStream {
  struct Params {
    float4* left;
    uint64_t* flags;
    uint64_t number;
    int whole;         // tiles
    int share, extra;  // k_tiles of a stretch; the first `extra` have one more
    FastDivmod k_tiles;
  };
  static constexpr bool kStreams = true;
  const Params& s;
  int cluster, clusters, size;       // size: blocks of a cluster
  int first, first_k, last, last_k;  // where the stretch begins and ends: tile, k_tile
  int tile, k_begin, k_end;

  __device__ __forceinline__ ConvTmaStream(const ConvTmaParams& p, const Params& params,
                                           const ConvTmaPart&)
      : s(params),
        cluster(static_cast<int>(p.cluster.div(blockIdx.x))),
        clusters(static_cast<int>(p.cluster.div(gridDim.x))),
        size(static_cast<int>(p.cluster.divisor)) {
    uint32_t rest;
    first = s.whole + static_cast<int>(s.k_tiles.divmod(start(cluster), rest));
    first_k = static_cast<int>(rest);
    last = s.whole + static_cast<int>(s.k_tiles.divmod(start(cluster + 1), rest));
    last_k = static_cast<int>(rest);
    tile = last;
    k_begin = first == last ? first_k : 0;
    k_end = last_k;
    if (k_begin == k_end) advance();
  }

  __device__ __forceinline__ int start(int of) const { return of * s.share + min(of, s.extra); }
  __device__ __forceinline__ int whole_k() const { return static_cast<int>(s.k_tiles.divisor); }
  __device__ __forceinline__ bool more() const { return tile >= 0; }
  // The present stretch: whether another cluster ends its tile, and whether others began it.
  __device__ __forceinline__ bool leaves() const { return k_end != whole_k(); }
  __device__ __forceinline__ bool ends() const { return k_begin != 0; }

  __device__ __forceinline__ void advance() {
    if (leaves()) {
      tile = cluster - clusters;
      k_begin = 0;
      k_end = whole_k();
    } else if (ends()) {
      tile = -1;
      return;
    }
    if (tile < s.whole) {
      tile += clusters;
      if (tile < s.whole) return;
      tile = first + (first_k != 0);
    } else {
      ++tile;
    }
    if (tile < last) return;
    const bool has_end = first_k != 0 && first != last;
    tile = has_end ? first : -1;
    k_begin = first_k;
  }

  template <class Tile>
  __device__ __forceinline__ float4* sums_of(unsigned block) const {
    return s.left + static_cast<int64_t>(block) * (Tile::BLOCK_M * Tile::BLOCK_N / 4) +
           (threadIdx.x - 128);
  }
  template <class Tile>
  __device__ __forceinline__ uint64_t* flag_of(unsigned block) const {
    return s.flags + (block * Tile::CONSUMER_WARPS + threadIdx.x / 32 - 4);
  }

  template <class Tile>
  __device__ __forceinline__ void leave(
      const float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2]) const {
    constexpr int THREADS = 128 * Tile::CONSUMERS, COUNT = Tile::BLOCK_N / 8;
    float4* const to = sums_of<Tile>(blockIdx.x);
#pragma unroll
    for (int i = 0; i < Tile::PRODUCTS; ++i)
#pragma unroll
      for (int j = 0; j < COUNT; ++j)
        __stcg(to + (i * COUNT + j) * THREADS,
               make_float4(acc[i][4 * j], acc[i][4 * j + 1], acc[i][4 * j + 2], acc[i][4 * j + 3]));
    __syncwarp();
    if (threadIdx.x % 32 == 0) flag_release(flag_of<Tile>(blockIdx.x), s.number);
  }

  template <class Tile>
  __device__ __forceinline__ void add_others(
      float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2]) const {
    constexpr int THREADS = 128 * Tile::CONSUMERS, COUNT = Tile::BLOCK_N / 8;
    const int begun = (first - s.whole) * whole_k();
    unsigned block = blockIdx.x;
    int other = cluster;
    do {
      --other;
      block -= static_cast<unsigned>(size);
      if (threadIdx.x % 32 == 0) {
        uint64_t* const flag = flag_of<Tile>(block);
        flag_wait(flag, s.number);
        *flag = 0;
      }
      __syncwarp();
      const float4* const from = sums_of<Tile>(block);
#pragma unroll
      for (int i = 0; i < Tile::PRODUCTS; ++i)
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
          const float4 v = __ldcg(from + (i * COUNT + j) * THREADS);
          acc[i][4 * j] += v.x;
          acc[i][4 * j + 1] += v.y;
          acc[i][4 * j + 2] += v.z;
          acc[i][4 * j + 3] += v.w;
        }
    } while (start(other) > begun);
  }
};

}  // namespace fastconv::cuda
