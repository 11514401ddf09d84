// Winograd convolution in one kernel, fprop and dgrad, 3x3, stride 1:
//   y tile = A^T [ sum_c (G w G^T) * (B^T x B) ] A
// per 4x4 (F(2x2,3x3)) or 6x6 (F(4x4,3x3)) tile of x. dgrad is the same kernel on dy, with filters
// flipped and transposed (conv_filter_winograd.cuh) and padding 2 - padding, negative: cropped.
//
// Mapping: n*n products of matrices M[e][k][tile] = sum_c U[e][k][c] V[e][tile][c]. A block has 32
// filters k (m of winograd_engine.cuh) and 32 tiles (n) at all points e, and loops over channels,
// r = 8 at a time: one thread per (tile, channel) reads its window, transforms it in registers and
// writes n*n values of V to shared memory; U, transformed before and stored in the order the
// products read, arrives by cp.async. Both are double buffered with one barrier per step: the
// pixels and filters of the next step are on their way while the products of this one run. The sums
// return through shared memory, 16 filters at a time, to one thread per (filter, tile) for A^T M A.
// Blocks of the same tiles and different filters are neighbours, so that x is read from DRAM once.
//
// Layouts: NCHW (a warp's 32 tiles side by side) and NHWC (8 channels side by side); dtypes: fp32,
// and bf16, fp16 widened on load; transforms and sums in fp32. With WinogradTf32 the operands of
// the products are rounded to TF32 (11 bits).
// Bytes: x, y once each and U (4 n*n bytes per filter and channel) at best; every block reads its
// share of U from L2: 4 bytes per 32 multiply-adds. FLOPs: 2 n*n per tile, filter and channel, that
// is 2.25 (4) times fewer than direct. Bound by the FMA pipe in fp32 from about 32 channels on; the
// input transform adds about 100 (350) instructions per 512 (1152) multiply-adds. Not measured on a
// GPU.
// Statistics of y where `moments` asks, per block of 32 tiles (detail/block_moments.cuh).
// Determinism: a sum runs over the channels in order; no atomics. NaN and infinities reach all
// outputs of a tile.
// Source: Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308.
#pragma once
#include "detail/async_copy.cuh"
#include "detail/winograd_block.cuh"
#include "detail/winograd_moments.cuh"

namespace fastconv::cuda {

struct WinogradFpropParams {
  WinogradImages in, out;  // of one group's first channel
  WinogradTiling tiling;
  int32_t pad_h, pad_w;
  int32_t C, K;   // of one group
  int32_t steps;  // ceil(C / 8)
  // Slabs, 32 filters of one group each, number slab_begin to slab_begin + slabs - 1.
  FastDivmod slabs, slabs_per_group;
  uint32_t slab_begin;
  // Of fprop; the residual is dense where `out` may be a slice.
  StoreEpilogue<float> epilogue;
  WinogradImages residual;
  MomentTiles<float> moments;
};

// What a block computes, from its number.
struct WinogradBlockPlace {
  uint32_t slab_local, first_tile, group;
  int32_t first_k;
};
__device__ __forceinline__ WinogradBlockPlace winograd_block_place(const WinogradFpropParams& p,
                                                                   uint32_t block) {
  WinogradBlockPlace at;
  uint32_t slab_in_group;
  at.first_tile = p.slabs.divmod(block, at.slab_local) * kWinogradBlock;
  at.group = p.slabs_per_group.divmod(p.slab_begin + at.slab_local, slab_in_group);
  at.first_k = static_cast<int32_t>(slab_in_group * kWinogradBlock);
  return at;
}

// Which filter of the slab's 32 and tile of the block's 32 a task of one half of the filters is.
struct WinogradTask {
  int k, n;
};

template <bool kNhwc>
__device__ __forceinline__ WinogradTask winograd_task(int task, int half) {
  // NHWC: the two tiles of a warp are 16 apart, for the banks.
  return {half * 16 + (kNhwc ? task % 16 : task / 32),
          kNhwc ? task / 16 % 2 * 16 + task / 32 : task % 32};
}

template <class Wino, class Engine, class scalar_t, bool kNhwc>
__global__ void __launch_bounds__(WinogradBlockShape<Wino>::kThreads,
                                  WinogradBlockShape<Wino>::kBlocksPerSm)
    conv_fprop_winograd_fused_kernel(const WinogradFpropParams p, const scalar_t* __restrict__ x,
                                     const float* __restrict__ u, const scalar_t* __restrict__ bias,
                                     scalar_t* __restrict__ y) {
  using Shape = WinogradBlockShape<Wino>;
  constexpr int kTile = Wino::kTile, kOut = Wino::kOut, kThreads = Shape::kThreads;
  FC_DYN_SHARED(float, shared);  // [2][point][256] of U, then of V
  float* const shared_v = shared + 2 * Shape::kStage;
  // Behind half the sums, [output][32 filters][32 tiles]: what waits for the epilogue.
  constexpr int kOutputPitch = kWinogradBlock * kWinogradBlock;
  float* const outputs = shared + Shape::kPoints * 16 * kWinogradSumPitch;
  static_assert(Shape::kPoints * 16 * kWinogradSumPitch + kOut * kOut * kOutputPitch <=
                4 * Shape::kStage);
  const int lane = threadIdx.x % 32, first_point = threadIdx.x / 32 * Shape::kPointsPerWarp;

  const auto [slab_local, first_tile, group, first_k] = winograd_block_place(p, blockIdx.x);
  x = byte_offset(x, static_cast<int64_t>(group) * p.C * p.in.stride_c);
  u += static_cast<int64_t>(slab_local) * p.steps * Shape::kStage + threadIdx.x * 4;

  // This thread's tile and channel of each step.
  const bool transforms = threadIdx.x < Shape::kTransformThreads;
  const int my_tile = kNhwc ? (threadIdx.x / 8) % 32 : lane;
  const int my_channel = kNhwc ? threadIdx.x % 8 : (threadIdx.x / 32) % 8;
  WinogradWindow<scalar_t> window{x, 0};
  if (transforms && first_tile + my_tile < p.tiling.tiles) {
    const WinogradTile t = winograd_tile(p.tiling, first_tile + my_tile);
    window = winograd_window<kTile>(
        p.in, byte_offset(x, t.n * p.in.stride_n + my_channel * p.in.stride_c),
        t.y * kOut - p.pad_h, t.x * kOut - p.pad_w);
  }
  const int v_slot = Engine::template b_slot<kNhwc>(my_tile, my_channel);
  using Pixels = raw_pixel_t<scalar_t>[kTile * kTile];

  int32_t channels_left = p.C;
  const auto fetch = [&](int stage, Pixels& pixels) {
    float* to = shared + stage * Shape::kStage + threadIdx.x * 4;
#pragma unroll
    for (int i = 0; i < Shape::kStage; i += kThreads * 4) cp_async<16>(to + i, u + i, true);
    cp_async_commit();
    u += Shape::kStage;
    if (!transforms) return;
    load_window<kTile, !kNhwc>(p.in, window.corner, my_channel < channels_left ? window.exists : 0,
                               pixels);
    window.corner = byte_offset(window.corner, kWinogradDepth * p.in.stride_c);
    channels_left -= kWinogradDepth;
  };
  const auto transform = [&](int stage, const Pixels& pixels) {
    if (!transforms) return;
    float* to = shared_v + stage * Shape::kStage + v_slot;
    winograd_nest<WinogradInput<Wino>>(
        [&](int i, int j) { return widen<scalar_t>(pixels[i * kTile + j]); },
        [&](int i, int j, float v) { to[(i * kTile + j) * kWinogradPoint] = Engine::operand(v); });
  };

  WinogradSums sums[Shape::kPointsPerWarp] = {};
  // Step -1 only fills the pipeline, so that there is one copy of the code.
#pragma unroll 1
  for (int32_t step = -1; step < p.steps; ++step) {
    const int stage = step & 1;
    const bool more = step + 1 < p.steps;
    cp_async_wait<0>();
    __syncthreads();
    // Set on every path, or their registers would be taken from one step to the next.
    Pixels pixels = {};
    if (more) fetch(stage ^ 1, pixels);
    if (step >= 0) {
      const int at = stage * Shape::kStage + first_point * kWinogradPoint;
      Engine::template multiply<false, kNhwc>(lane, shared + at, shared_v + at, sums);
    }
    if (more) transform(stage ^ 1, pixels);
  }

  y = byte_offset(y, (static_cast<int64_t>(group) * p.K + first_k) * p.out.stride_c);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
    scatter_sums<Engine>(half, lane, first_point, sums, shared);
    __syncthreads();
#pragma unroll 1
    for (int task = threadIdx.x; task < 16 * kWinogradBlock; task += kThreads) {
      const WinogradTask at = winograd_task<kNhwc>(task, half);
      if (first_k + at.k >= p.K || first_tile + at.n >= p.tiling.tiles) continue;
      const float* from = shared + at.k % 16 * kWinogradSumPitch + at.n;
      float values[kOut][kOut];
      winograd_nest<WinogradOutput<Wino>>(
          [&](int i, int j) { return from[(i * kTile + j) * 16 * kWinogradSumPitch]; },
          [&](int i, int j, float v) { values[i][j] = v; });
      if (bias != nullptr) {
        const float b = to_acc(bias[group * static_cast<int64_t>(p.K) + first_k + at.k]);
#pragma unroll
        for (int i = 0; i < kOut; ++i)
#pragma unroll
          for (int j = 0; j < kOut; ++j) values[i][j] += b;
      }
      if (p.epilogue.any) {
        float* const kept = outputs + at.k * kWinogradBlock + at.n;
#pragma unroll
        for (int i = 0; i < kOut; ++i)
#pragma unroll
          for (int j = 0; j < kOut; ++j) kept[(i * kOut + j) * kOutputPitch] = values[i][j];
        continue;
      }
      const WinogradTile t = winograd_tile(p.tiling, first_tile + at.n);
      const int32_t y0 = t.y * kOut, x0 = t.x * kOut;
      scalar_t* to = byte_offset(y, at.k * p.out.stride_c + t.n * p.out.stride_n +
                                        y0 * static_cast<int64_t>(p.out.stride_h) +
                                        x0 * static_cast<int64_t>(p.out.stride_w));
      store_tile<kOut>(p.out, !kNhwc, to, p.out.height - y0, p.out.width - x0, values);
    }
  }
  if (p.moments.to != nullptr) {
    // Worked out once more: the main loop has no registers to keep it in.
    const WinogradBlockPlace at = winograd_block_place(p, block_index_again());
    const int64_t channel = static_cast<int64_t>(at.group) * p.K + at.first_k;
    winograd_moments<Wino, kNhwc, kWinogradBlock>(
        p.out, p.tiling, static_cast<const scalar_t*>(y), at.first_tile, p.tiling.tiles,
        min(kWinogradBlock, p.K - at.first_k), kThreads,
        p.moments.to + channel * p.moments.tiles + at.first_tile / kWinogradBlock, p.moments.tiles);
    return;
  }
  if (!p.epilogue.any) return;
  // By the threads that kept the outputs, now that no sums are in registers.
#pragma unroll 1
  for (int half = 0; half < 2; ++half)
#pragma unroll 1
    for (int task = threadIdx.x; task < 16 * kWinogradBlock; task += kThreads) {
      const WinogradTask at = winograd_task<kNhwc>(task, half);
      if (first_k + at.k >= p.K || first_tile + at.n >= p.tiling.tiles) continue;
      const WinogradTile t = winograd_tile(p.tiling, first_tile + at.n);
      const int32_t y0 = t.y * kOut, x0 = t.x * kOut;
      scalar_t* to = byte_offset(y, at.k * p.out.stride_c + t.n * p.out.stride_n +
                                        y0 * static_cast<int64_t>(p.out.stride_h) +
                                        x0 * static_cast<int64_t>(p.out.stride_w));
      const int64_t channel = static_cast<int64_t>(group) * p.K + first_k + at.k;
      const scalar_t* residual =
          byte_offset(static_cast<const scalar_t*>(p.epilogue.residual),
                      channel * p.residual.stride_c + t.n * p.residual.stride_n +
                          y0 * static_cast<int64_t>(p.residual.stride_h) +
                          x0 * static_cast<int64_t>(p.residual.stride_w));
      const float* kept = outputs + at.k * kWinogradBlock + at.n;
#pragma unroll 1
      for (int i = 0; i < kOut && y0 + i < p.out.height; ++i) {
        float row[kOut];
#pragma unroll
        for (int j = 0; j < kOut; ++j) row[j] = kept[j * kOutputPitch];
        apply_to_row(p.epilogue, p.residual, !kNhwc, residual, p.out.width - x0, row);
        store_row(p.out, !kNhwc, to, p.out.width - x0, row);
        kept += kOut * kOutputPitch;
        to = byte_offset(to, p.out.stride_h);
        residual = byte_offset(residual, p.residual.stride_h);
      }
    }
}

}  // namespace fastconv::cuda
