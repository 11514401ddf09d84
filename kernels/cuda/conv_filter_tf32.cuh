// Filters for wgmma's TF32, which takes K-major operands only, and for three products of it
// (conv_gather_tma_tf32x3.cuh), into the workspace:
//
//   fprop   [K, taps, C] split: v = big + small
//   dgrad   [K, taps, C] turned to [C, taps backwards, K], gemm_k innermost; split, too, where
//           there are three products
//
// A thread splits four neighbours; a block turns 32 filters x 32 channels of one tap at a time
// through shared memory. fp32, NHWC. Bytes: 4 of w in, 4 or 8 out, in rows of 128 where it turns;
// bound by DRAM, or L2. Deterministic. Not measured on a GPU.
#pragma once
#include "detail/conv_tma_params.cuh"
#include "detail/mma.cuh"
#include "detail/platform.cuh"

namespace fastconv::cuda {

constexpr int kSplitThreads = 256;

// Four neighbours' big parts, and `count` further on the small ones.
__device__ __forceinline__ void store_tf32_parts(float* to, int64_t count, uint32_t (&v)[4]) {
  uint32_t small[4];
  split_tf32(v, small);
  // By the function of such a store: nvcc takes one of two assignments apart.
  __stcg(reinterpret_cast<uint4*>(to), make_uint4(v[0], v[1], v[2], v[3]));
  __stcg(reinterpret_cast<uint4*>(to + count), make_uint4(small[0], small[1], small[2], small[3]));
}

// parts [2][count]: w's big parts, then the small ones. count % 4 == 0, both aligned to 16 bytes.
__global__ void __launch_bounds__(kSplitThreads)
    conv_filter_tf32x3_kernel(const float* __restrict__ w, float* __restrict__ parts,
                              int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSplitThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kSplitThreads + threadIdx.x) * 4; i < count;
       i += step) {
    const float4 v = *reinterpret_cast<const float4*>(w + i);
    uint32_t big[4] = {__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                       __float_as_uint(v.w)};
    store_tf32_parts(parts + i, count, big);
  }
}

struct ConvFilterTurn {
  const float* w;               // [filters, taps, channels]
  float* turned;                // [PARTS][channels, taps backwards, filters]
  int filters, channels, taps;  // the first two are multiples of 4
  int tiles;                    // of 32 x 32 of a tap, the channels' fastest, then the taps
  FastDivmod channel_tiles, tap_count;
};

template <int PARTS>
__global__ void __launch_bounds__(kSplitThreads)
    conv_filter_turned_kernel(const __grid_constant__ ConvFilterTurn p) {
  // Rows' pitch is odd, so that neither four neighbours along a row nor down a column share banks.
  FC_SHARED(float, tile, [kTurnTile][kTurnTile + 1]);  // [k][c]
  const int row = threadIdx.x / 8, column = threadIdx.x % 8 * 4;
  const int64_t count = static_cast<int64_t>(p.filters) * p.taps * p.channels;
  for (int i = blockIdx.x; i < p.tiles; i += gridDim.x) {
    uint32_t channel_tile, tap;
    const uint32_t rest = p.channel_tiles.divmod(i, channel_tile);
    const int k0 = static_cast<int>(p.tap_count.divmod(rest, tap)) * kTurnTile;
    const int c0 = static_cast<int>(channel_tile) * kTurnTile;
    if (k0 + row < p.filters && c0 + column < p.channels) {
      const int64_t at = (static_cast<int64_t>(k0 + row) * p.taps + tap) * p.channels + c0 + column;
      const float4 v = *reinterpret_cast<const float4*>(p.w + at);
      tile[row][column] = v.x;
      tile[row][column + 1] = v.y;
      tile[row][column + 2] = v.z;
      tile[row][column + 3] = v.w;
    }
    __syncthreads();
    if (c0 + row < p.channels && k0 + column < p.filters) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = __float_as_uint(tile[column + j][row]);
      float* const to = p.turned +
                        (static_cast<int64_t>(c0 + row) * p.taps + p.taps - 1 - tap) * p.filters +
                        k0 + column;
      if constexpr (PARTS == 2)
        store_tf32_parts(to, count, v);
      else
        __stcg(reinterpret_cast<uint4*>(to), make_uint4(v[0], v[1], v[2], v[3]));
    }
    __syncthreads();  // the next one overwrites it
  }
}

}  // namespace fastconv::cuda
