// Winograd wgrad, 3x3, stride 1, by F(3x3,2x2) and F(3x3,4x4): the tile of dy is the filter,
//   dw[k][c] = A^T [ sum_tile (G dy G^T)[k][tile] * (B^T x B)[c][tile] ] A,
// with the input tiles of fprop (4x4 or 6x6 pixels of x for 2x2 or 4x4 of dy).
//
// Mapping: n*n products of matrices M[e][k][c] = sum_tile U[e][k][tile] V[e][c][tile]. A block has
// 32 filters k (m of winograd_engine.cuh) and 32 channels c (n) of one group at all points e, and
// loops over its share of the tiles, r = 8 at a time: one thread per (filter, tile) and (channel,
// tile) reads the pixels and leaves the transformed tile in shared memory, double buffered with one
// barrier per step, the pixels of the next step on their way while the products of this one run. Of
// F(4x4) eight warps transform x and four dy, two tiles each. The sums return through shared
// memory, 16 filters at a time, to one thread per (filter, channel) for A^T M A, 9 numbers.
//
// The tiles are split over `splits` blocks for each of which 9 K C partial sums go to the
// workspace; conv_wgrad_winograd_reduce_kernel adds them up in the order of the splits. The number
// of splits depends on the problem alone: same bits on every GPU. Layouts: NCHW (8 tiles of a row
// side by side) and NHWC (32 channels); dtypes: fp32, and bf16, fp16 widened on load; sums in fp32.
// With WinogradTf32 the operands of the products are rounded to TF32. Bytes: every block reads 32
// channels of its tiles of x and dy: C / 32 times dy and K / 32 times x, mostly from L2 (blocks of
// the same tiles are neighbours), and 36 splits K C of partial sums. FLOPs: 2 n*n per tile, filter
// and channel, and both transforms again for every 32 channels of the other side: 60% on top of the
// multiply-adds on FMA, more than the products on tensor cores. Not measured on a GPU.
// Deterministic, no atomics. Source: Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308.
#pragma once
#include "detail/winograd_block.cuh"

namespace fastconv::cuda {

struct WinogradWgradParams {
  WinogradImages x, dy;
  WinogradTiling tiling;  // of dy
  int32_t pad_h, pad_w;
  int32_t C, K;  // of one group
  int64_t K_total;
  FastDivmod slabs, c_blocks, k_blocks;  // a slab: 32 filters times 32 channels of a group
  int32_t steps, steps_per_split;        // of 8 tiles
};

template <class Wino, class Engine, class scalar_t, bool kNhwc>
__global__ void __launch_bounds__(WinogradBlockShape<Wino>::kThreads,
                                  WinogradBlockShape<Wino>::kBlocksPerSm)
    conv_wgrad_winograd_fused_kernel(const WinogradWgradParams p, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ dy, float* __restrict__ partial) {
  using Shape = WinogradBlockShape<Wino>;
  constexpr int kTile = Wino::kTile, kOut = Wino::kOut, kThreads = Shape::kThreads;
  FC_DYN_SHARED(float, shared);  // [2][point][256] of U, then of V
  float* const shared_v = shared + 2 * Shape::kStage;
  const int lane = threadIdx.x % 32, first_point = threadIdx.x / 32 * Shape::kPointsPerWarp;

  uint32_t slab, k_block, c_block;
  const uint32_t split = p.slabs.divmod(blockIdx.x, slab);
  const uint32_t group = p.k_blocks.divmod(p.c_blocks.divmod(slab, c_block), k_block);
  const int32_t first_k = k_block * kWinogradBlock, first_c = c_block * kWinogradBlock;
  x = byte_offset(x, (static_cast<int64_t>(group) * p.C + first_c) * p.x.stride_c);
  dy = byte_offset(dy, (static_cast<int64_t>(group) * p.K + first_k) * p.dy.stride_c);
  const int32_t begin = split * p.steps_per_split;
  const int32_t end = min(begin + p.steps_per_split, p.steps);

  // A thread has one tile of x and one of dy, or, where there are threads for it, one of x or two
  // of dy, in one set of registers.
  constexpr bool kRoles = kThreads >= kWinogradPoint * 3 / 2;
  constexpr int kDyPixels = kOut * kOut, kXPixels = kTile * kTile;
  constexpr int kPixels = kRoles ? kXPixels : kXPixels + kDyPixels;
  static_assert(!kRoles || 2 * kDyPixels <= kXPixels,
                "two tiles of dy in the registers of one of x");
  constexpr int kDyTiles = kRoles ? 2 : 1, kDyAt = kRoles ? 0 : kXPixels;
  const bool does_x = threadIdx.x < kWinogradPoint;
  const bool does_dy = !kRoles || threadIdx.x >= kWinogradPoint;
  // The (channel, tile) of thread `i` of 256.
  const auto channel_of = [](int i) { return kNhwc ? i % 32 : i / 8 % 32; };
  const auto tile_of = [](int i) { return kNhwc ? i / 32 % 8 : i % 8; };
  const auto dy_index = [&](int i) {
    return static_cast<int>(threadIdx.x) - (kRoles ? kWinogradPoint : 0) + 128 * i;
  };
  using Pixels = raw_pixel_t<scalar_t>[kPixels];

  const auto fetch = [&](int32_t step, Pixels& pixels) {
    if (does_x) {
      const int c = channel_of(threadIdx.x);
      const uint32_t tile = step * kWinogradDepth + tile_of(threadIdx.x);
      const WinogradTile t = winograd_tile(p.tiling, tile);
      const auto window =
          winograd_window<kTile>(p.x, byte_offset(x, t.n * p.x.stride_n + c * p.x.stride_c),
                                 t.y * kOut - p.pad_h, t.x * kOut - p.pad_w);
      const bool any = tile < p.tiling.tiles && first_c + c < p.C;
      load_window<kTile, !kNhwc>(p.x, window.corner, any ? window.exists : 0, pixels);
    }
    if (does_dy) {
#pragma unroll
      for (int i = 0; i < kDyTiles; ++i) {
        const int k = channel_of(dy_index(i));
        const uint32_t tile = step * kWinogradDepth + tile_of(dy_index(i));
        const WinogradTile t = winograd_tile(p.tiling, tile);
        const auto window = winograd_window<kOut>(
            p.dy, byte_offset(dy, t.n * p.dy.stride_n + k * p.dy.stride_c), t.y * kOut, t.x * kOut);
        const bool any = tile < p.tiling.tiles && first_k + k < p.K;
        load_window<kOut, !kNhwc>(p.dy, window.corner, any ? window.exists : 0,
                                  pixels + kDyAt + i * kDyPixels);
      }
    }
  };
  const auto transform = [&](int stage, const Pixels& pixels) {
    if (does_x) {
      float* const to =
          shared_v + stage * Shape::kStage +
          Engine::template b_slot<!kNhwc>(channel_of(threadIdx.x), tile_of(threadIdx.x));
      winograd_nest<WinogradInput<Wino>>(
          [&](int i, int j) { return widen<scalar_t>(pixels[i * kTile + j]); },
          [&](int i, int j, float v) {
            to[(i * kTile + j) * kWinogradPoint] = Engine::operand(v);
          });
    }
    if (does_dy) {
#pragma unroll
      for (int n = 0; n < kDyTiles; ++n) {
        float* const to =
            shared + stage * Shape::kStage +
            Engine::template a_slot<!kNhwc>(channel_of(dy_index(n)), tile_of(dy_index(n)));
        winograd_nest<WinogradWgradFilter<Wino>>(
            [&](int i, int j) {
              return widen<scalar_t>(pixels[kDyAt + n * kDyPixels + i * kOut + j]);
            },
            [&](int i, int j, float v) {
              to[(i * kTile + j) * kWinogradPoint] = Engine::operand(v);
            });
      }
    }
  };

  WinogradSums sums[Shape::kPointsPerWarp] = {};
  // Step begin - 1 only fills the pipeline, so that there is one copy of the code.
#pragma unroll 1
  for (int32_t step = begin - 1; step < end; ++step) {
    const int stage = step & 1;
    const bool more = step + 1 < end;
    __syncthreads();
    // Set on every path, or their registers would be taken from one step to the next.
    Pixels pixels = {};
    if (more) fetch(step + 1, pixels);
    if (step >= begin) {
      const int at = stage * Shape::kStage + first_point * kWinogradPoint;
      Engine::template multiply<!kNhwc, !kNhwc>(lane, shared + at, shared_v + at, sums);
    }
    if (more) transform(stage ^ 1, pixels);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
    scatter_sums<Engine>(half, lane, first_point, sums, shared);
    __syncthreads();
#pragma unroll 1
    for (int task = threadIdx.x; task < 16 * kWinogradBlock; task += kThreads) {
      const int k = task / 32, c = task % 32;
      const int32_t k_in_group = first_k + half * 16 + k;
      if (k_in_group >= p.K || first_c + c >= p.C) continue;
      const float* from = shared + k * kWinogradSumPitch + c;
      const int64_t to = (static_cast<int64_t>(group) * p.K + k_in_group) * p.C + first_c + c;
      const int64_t taps = p.K_total * p.C;  // from one tap to the next
      winograd_nest<WinogradWgradOutput<Wino>>(
          [&](int i, int j) { return from[(i * kTile + j) * 16 * kWinogradSumPitch]; },
          [&](int i, int j, float v) {
            partial[(split * int64_t{9} + i * 3 + j) * taps + to] = v;
          });
    }
  }
}

// dw = the sum of `splits` partial sums [split][9][K][C], in their order. One thread per (k, c),
// ceil(C / 128) blocks per k. Bytes: 36 splits K C in. Bound by memory.
struct WinogradWgradReduceParams {
  int64_t filters;  // of all groups
  int32_t C;        // of one
  int32_t splits;
  FastDivmod blocks_per_filter;
  int64_t stride_k, stride_c, stride_r, stride_s;  // of dw, elements
};

constexpr int kWinogradReduceThreads = 128;

template <class scalar_t>
__global__ void __launch_bounds__(kWinogradReduceThreads)
    conv_wgrad_winograd_reduce_kernel(const WinogradWgradReduceParams p,
                                      const float* __restrict__ partial,
                                      scalar_t* __restrict__ dw) {
  uint32_t block;
  const uint32_t k = p.blocks_per_filter.divmod(blockIdx.x, block);
  const int32_t c = block * kWinogradReduceThreads + threadIdx.x;
  if (c >= p.C) return;
  const int64_t taps = p.filters * p.C;
  float sums[9] = {};
  partial += static_cast<int64_t>(k) * p.C + c;
#pragma unroll 1
  for (int32_t split = 0; split < p.splits; ++split)
#pragma unroll
    for (int t = 0; t < 9; ++t, partial += taps) sums[t] += *partial;
  dw += k * p.stride_k + c * p.stride_c;
#pragma unroll
  for (int t = 0; t < 9; ++t)
    dw[t / 3 * p.stride_r + t % 3 * p.stride_s] = from_acc<scalar_t>(sums[t]);
}

}  // namespace fastconv::cuda
