// Moments (moments.cuh) of every channel of a tile of C, from the tile as the epilogue left it in
// shared memory (gemm.cuh); value = round(sum + bias), as it was stored.
//
// A pass of its own behind the stores, not a part of them: it is one branch that a whole grid
// answers alike, the kernel without statistics has the same registers, and each layout reads the
// tile in the order that adds up best. Some six instructions per value of the tile.
//
// Deterministic: which values a thread adds, and how threads' sums add, follow from the tile alone.
#pragma once
#include "gemm.cuh"
#include "moments.cuh"

namespace fastconv::cuda {

// Where the moments of a tile go: of channel c (of the tile) to to[c * pitch].
struct GemmMoments {
  TileMoment* to;
  int64_t pitch;
  int channels, pixels;  // of the tile that exist; at least one of each
};

// A channel's sums, and what its values are rounded as.
template <class out_t>
struct ChannelSums : MomentSums<float> {
  float bias;

  __device__ __forceinline__ float value(float v) const {
    return to_acc(from_acc<out_t>(v + bias));
  }
  __device__ __forceinline__ void start(const out_t* bias_at, float first_sum) {
    bias = bias_at == nullptr ? 0.0f : to_acc(*bias_at);
    MomentSums<float>::start(value(first_sum));
  }
  __device__ __forceinline__ void add(float v, bool exists) {
    MomentSums<float>::add(value(v), exists);
  }
  __device__ __forceinline__ TileMoment moments(float inverse_count) const {
    return {first, offset(inverse_count), m2(inverse_count)};
  }
};

// CHANNELS_ARE_COLUMNS: of gemm_n (NHWC); else of gemm_m. bias: of the tile's first channel, or
// null. All threads of the block take part, behind gemm_epilogue, whose tile they read.
template <class Tile, bool CHANNELS_ARE_COLUMNS, class out_t>
__device__ __forceinline__ void gemm_moments(const GemmMoments& m, const out_t* bias,
                                             const unsigned char* shared) {
  const float* const tile = reinterpret_cast<const float*>(shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float inverse_count = 1.0f / static_cast<float>(m.pixels);
  const auto load = [&](int row, int column) {
    return *reinterpret_cast<const float4*>(tile + gemm_place<Tile>(row, column));
  };
  if constexpr (CHANNELS_ARE_COLUMNS) {
    // A thread has four channels and every eighth pixel. Of eight lanes that read together four
    // have rows that the tile's permutation tells apart, two have neighbouring chunks: all banks.
    constexpr int SLOTS = 8;
    static_assert(Tile::NUM_THREADS * 4 == Tile::BLOCK_N * SLOTS);
    const int slot = (lane & 3) | (lane & 16) / 4;
    const int n = (thread / 32 * 4 + (lane & 12) / 4) * 4;
    ChannelSums<out_t> c[4];
    const float4 first = load(0, n);
    const float firsts[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      c[e].start(bias != nullptr && n + e < m.channels ? bias + n + e : nullptr, firsts[e]);
#pragma unroll 1
    for (int row = slot; row < Tile::BLOCK_M; row += SLOTS) {
      const float4 v = load(row, n);
      const bool exists = row < m.pixels;
      c[0].add(v.x, exists), c[1].add(v.y, exists), c[2].add(v.z, exists), c[3].add(v.w, exists);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      c[e].add_lane(1), c[e].add_lane(2), c[e].add_lane(16);
      if (slot == 0 && n + e < m.channels) m.to[(n + e) * m.pitch] = c[e].moments(inverse_count);
    }
  } else {
    // A thread has one channel and a part of its pixels, in chunks of four, which lanes of equal
    // permutation read in another order.
    constexpr int SLOTS = Tile::NUM_THREADS / Tile::BLOCK_M, CHUNKS = Tile::BLOCK_N / 4 / SLOTS;
    static_assert(SLOTS == 1 || SLOTS == 2);
    const int row = thread / SLOTS, slot = thread % SLOTS;
    const int turn = SLOTS == 2 ? slot : row / 4 & 1;
    ChannelSums<out_t> c;
    c.start(bias != nullptr && row < m.channels ? bias + row : nullptr, load(row, 0).x);
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int n = (slot * CHUNKS + (chunk ^ turn)) * 4;
      const float4 v = load(row, n);
      c.add(v.x, n < m.pixels), c.add(v.y, n + 1 < m.pixels);
      c.add(v.z, n + 2 < m.pixels), c.add(v.w, n + 3 < m.pixels);
    }
    if constexpr (SLOTS == 2) c.add_lane(1);
    if (slot == 0 && row < m.channels) m.to[row * m.pitch] = c.moments(inverse_count);
  }
}

}  // namespace fastconv::cuda
