// The shapes of a persistent block whose warpgroups have roles: C [BLOCK_M, BLOCK_N] += A [BLOCK_M,
// BLOCK_K] * B [BLOCK_N, BLOCK_K]^T, stages of 128 bytes of gemm_k in a ring that TMA fills and
// wgmma reads. And what becomes of C: how a warp's accumulators get to memory.
#pragma once
#include "conv_result.cuh"
#include "wgmma.cuh"

namespace fastconv::cuda {

template <class scalar, int block_m, int block_n, int stages>
struct WgmmaTile {
  using scalar_t = scalar;
  static constexpr int BLOCK_M = block_m, BLOCK_N = block_n, NUM_STAGES = stages;
  static constexpr int BLOCK_K = 128 / static_cast<int>(sizeof(scalar));  // a row of the swizzle
  static constexpr int CONSUMERS = 2;                                     // warpgroups
  static constexpr int CONSUMER_WARPS = 4 * CONSUMERS;
  static constexpr int NUM_THREADS = 128 * (1 + CONSUMERS);  // the first warpgroup issues copies
  // Warpgroups below one another; the others are side by side, each with its own columns.
  static constexpr int CONSUMER_ROWS = block_m < 64 * CONSUMERS ? 1 : CONSUMERS;
  static constexpr int PRODUCTS = block_m / 64 / CONSUMER_ROWS;  // of 64 rows, to a warpgroup
  static constexpr int CONSUMER_N = block_n / (CONSUMERS / CONSUMER_ROWS);
  static constexpr int A_BYTES = block_m * 128, B_BYTES = block_n * 128;
  static constexpr int W_PARTS = 1;
  static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int RING_BYTES = NUM_STAGES * STAGE_BYTES;
  // Through which a warp turns its accumulators, 16 rows of 64 columns at a time.
  static constexpr int TURN_N = 64, TURN_BYTES = 16 * TURN_N * 4;
  // The swizzle is of addresses: a ring starts at a multiple of its pattern.
  static constexpr int ALIGNMENT = 1024;
  static constexpr int SHARED_BYTES =
      ALIGNMENT + RING_BYTES + CONSUMER_WARPS * TURN_BYTES + 2 * NUM_STAGES * 8;
  // With 168 registers for each of the 384 threads at entry, these add up to what an SM has.
  static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
  static_assert(block_m % (64 * CONSUMER_ROWS) == 0 && CONSUMER_N % TURN_N == 0);
  static_assert(NUM_STAGES >= 4 && SHARED_BYTES <= 227 * 1024 && CONSUMER_REGISTERS <= 240);
};

// fp32 as the sum of two TF32 numbers: w comes in two parts, the big and the small one.
template <int block_m, int block_n, int stages>
struct WgmmaSplitTile : WgmmaTile<float, block_m, block_n, stages> {
  using Whole = WgmmaTile<float, block_m, block_n, stages>;
  static constexpr int W_PARTS = 2, B_BYTES = W_PARTS * Whole::B_BYTES;
  static constexpr int STAGE_BYTES = Whole::A_BYTES + B_BYTES;
  static constexpr int RING_BYTES = stages * STAGE_BYTES;
  static constexpr int SHARED_BYTES = Whole::SHARED_BYTES - Whole::RING_BYTES + RING_BYTES;
  static_assert(SHARED_BYTES <= 227 * 1024);
};

// Where in a ring a role is, and in which of the barriers' phases.
template <int NUM_STAGES>
struct RingPosition {
  int slot = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == NUM_STAGES) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// C's rows in memory.
template <class scalar_t>
struct WgmmaStore {
  const ConvResult& to;

  // One row's columns n to n + 7.
  __device__ __forceinline__ void store(int m, int n, const float (&bias8)[8],
                                        float (&v)[8]) const {
    if (m >= to.pixels || n >= to.channels) return;
    const bool whole = n + 8 <= to.channels;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += bias8[i];
    if (to.epilogue.any)
      apply_epilogue(to.epilogue, v, [&](float(&r)[8]) {
        const scalar_t* const from = static_cast<const scalar_t*>(to.epilogue.residual) +
                                     static_cast<int64_t>(m) * to.channels + n;
        if (to.residual_vec8 && whole) {
          load_aligned(from, r);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (n + i < to.channels) r[i] = to_acc(from[i]);
        }
      });
    scalar_t* const out = static_cast<scalar_t*>(to.base) + m * to.pitch + n;
    if (to.vec8 && whole) {
      store_aligned(out, v);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (n + i < to.channels) out[i] = from_acc<scalar_t>(v[i]);
    }
  }

  __device__ __forceinline__ void load_bias(int n, float (&bias8)[8]) const {
    const scalar_t* const bias = static_cast<const scalar_t*>(to.bias);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      bias8[i] = bias != nullptr && n + i < to.channels ? to_acc(bias[n + i]) : 0.f;
  }
};

// Where 16 bytes of a turned row lie. Rows of 64 floats: even chunks in the first half, odd ones in
// the second, XORed with the row, so that both the float2 of a fragment (four rows of two chunks at
// a time) and the float4 of a row (eight chunks of one row) touch every bank once.
__device__ __forceinline__ int turned_place(int row, int column) {
  const int chunk = column / 4, odd = chunk & 1;
  return row * 64 + ((((chunk >> 1) ^ (row & 7) ^ (odd * 4)) + odd * 8) * 4) + column % 4;
}

// 16 rows of a warp and the 64 columns from `part` on: acc[i] as wgmma.cuh has it.
template <int BLOCK_N>
__device__ __forceinline__ void turn_accumulators(const float (&acc)[BLOCK_N / 2], int part,
                                                  float* turn) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float2*>(turn + turned_place(lane / 4 + 8 * half, 8 * j + lane % 4 * 2)) =
          make_float2(acc[part / 2 + 4 * j + 2 * half], acc[part / 2 + 4 * j + 2 * half + 1]);
}

// 16 rows of a warp from row m on: acc[i] as wgmma.cuh has it, BLOCK_N columns from n on. Store has
// load_bias and store as WgmmaStore has them.
template <int BLOCK_N, class Store>
__device__ __forceinline__ void store_accumulators(const float (&acc)[BLOCK_N / 2], float* turn,
                                                   const Store& store, int m, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < BLOCK_N; part += 64) {
    turn_accumulators<BLOCK_N>(acc, part, turn);
    __syncwarp();
    const int column = lane % 8 * 8;
    float bias8[8];
    store.load_bias(n + part + column, bias8);
#pragma unroll 1
    for (int row = lane / 8; row < 16; row += 4) {
      const float4 low = *reinterpret_cast<const float4*>(turn + turned_place(row, column));
      const float4 high = *reinterpret_cast<const float4*>(turn + turned_place(row, column + 4));
      float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      store.store(m + row, n + part + column, bias8, v);
    }
    __syncwarp();
  }
}

// The same where rows need not be neighbours in memory and shared memory is full: this lane's
// accumulators are of rows `low` and `high` of C. The four lanes that have a row exchange them, so
// that each has eight columns of every 32.
template <int BLOCK_N, class scalar_t>
__device__ __forceinline__ void store_accumulators_by_quads(const float (&acc)[BLOCK_N / 2],
                                                            const WgmmaStore<scalar_t>& store,
                                                            int low, int high, int n) {
  const int turn = threadIdx.x % 4;
  const bool odd = turn & 1, upper = turn & 2;
#pragma unroll
  for (int part = 0; part < BLOCK_N; part += 32) {
    float bias8[8];
    store.load_bias(n + part + turn * 8, bias8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // v[j] is columns 8 j + 2 turn and the next one; a transposition of 4 x 4 pairs: first
      // within blocks of 2 x 2, then of the blocks.
      float2 v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v[j] = make_float2(acc[part / 2 + 4 * j + 2 * half], acc[part / 2 + 4 * j + 2 * half + 1]);
      const auto exchange = [](float2& a, float2& b, bool first, int distance) {
        // What goes to the other lane: of the first of the two b, of the second a.
        const float2 sent = first ? b : a;
        const float2 got = make_float2(__shfl_xor_sync(0xFFFFFFFFu, sent.x, distance),
                                       __shfl_xor_sync(0xFFFFFFFFu, sent.y, distance));
        a = first ? a : got;
        b = first ? got : b;
      };
      exchange(v[0], v[1], !odd, 1);
      exchange(v[2], v[3], !odd, 1);
      exchange(v[0], v[2], !upper, 2);
      exchange(v[1], v[3], !upper, 2);
      float row[8] = {v[0].x, v[0].y, v[1].x, v[1].y, v[2].x, v[2].y, v[3].x, v[3].y};
      store.store(half == 0 ? low : high, n + part + turn * 8, bias8, row);
    }
  }
}

}  // namespace fastconv::cuda
