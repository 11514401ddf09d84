// The transforms of the non-fused Winograd convolution, between tensors and matrices in the
// workspace that the batched matrix product (detail/gemm_batched.cuh) multiplies, one per group g
// and point e of the tile, fp32:
//   conv_transform_winograd_kernel         V[g][e] = (T d T^T)[e]: pixels of x (T = B^T), of dy in
//                                          wgrad (T = G of F(3x3,mxm)), or filters (T = G), which
//                                          it takes for images of 3x3 pixels, one tile each
//   conv_output_winograd_kernel            y tile = A^T M A, plus bias; with STATS, a kernel of
//                                          its own, statistics of y (detail/block_moments.cuh),
//                                          for which a block has some tiles of some channels
//   conv_wgrad_winograd_output_kernel      dw = A^T M A, over splits of the tiles and over chunks
//
// A matrix is [slow][fast], both extents rounded up to 4 so that the product can read 16 bytes at a
// time, what lies beyond filled with zeros. `fast` is the axis that lies contiguous in the tensor
// too (tiles in NCHW, channels in NHWC): one thread per (slow, fast) keeps the reads and the writes
// of a warp side by side.
//
// dtypes: fp32, bf16, fp16; transforms in fp32. Bytes: input, every pixel read once (from L2 as
// often as tiles overlap), n*n/m^2 values of fp32 written per pixel: 4 (F(2x2)) or 2.25 (F(4x4));
// output the same the other way round. Of a tile's input, 32 additions (F(2x2)) or 144 fused
// multiply-additions (F(4x4)) for 128 or 288 bytes: bound by memory. Deterministic: one thread owns
// a tile of one channel, and wgrad's adds over splits, then over chunks, in ascending order. Not
// measured on a GPU. Source: Lavin and Gray 2015, arXiv:1509.09308, section 4, algorithm 1.
#pragma once
#include "detail/winograd_moments.cuh"
#include "detail/winograd_tile.cuh"

namespace fastconv::cuda {

constexpr int kWinogradTransformThreads = 128;

// Matrices [groups][points][slow][fast].
struct WinogradMatrices {
  FastDivmod fast, slow;  // extents
  uint32_t elements;      // groups * slow * fast, fewer than 2^31
  bool channels_fast;
};

struct WinogradElement {
  int32_t tile, channel, group;
  int64_t offset;  // of point 0
};

__device__ __forceinline__ WinogradElement winograd_element(const WinogradMatrices& m, uint32_t i,
                                                            int points) {
  uint32_t fast, slow;
  const uint32_t group = m.slow.divmod(m.fast.divmod(i, fast), slow);
  const int64_t matrix = static_cast<int64_t>(m.slow.divisor) * m.fast.divisor;
  return {static_cast<int32_t>(m.channels_fast ? slow : fast),
          static_cast<int32_t>(m.channels_fast ? fast : slow), static_cast<int32_t>(group),
          group * points * matrix + static_cast<int64_t>(slow) * m.fast.divisor + fast};
}

struct WinogradTransformParams {
  WinogradImages images;  // of the first group
  int64_t group_bytes;    // from one group to the next
  WinogradTiling tiling;
  WinogradMatrices to;
  int32_t step;  // pixels from one tile to the next
  int32_t pad_h, pad_w;
  uint32_t first_tile;      // of the chunk
  int32_t tiles, channels;  // that exist: of the chunk; of a group
};

template <class Transform, class scalar_t>
__global__ void __launch_bounds__(kWinogradTransformThreads)
    conv_transform_winograd_kernel(const WinogradTransformParams p, const scalar_t* __restrict__ x,
                                   float* __restrict__ v) {
  constexpr int kExtent = Transform::kIn, kPoints = Transform::kOut * Transform::kOut;
  const uint32_t i = blockIdx.x * kWinogradTransformThreads + threadIdx.x;
  if (i >= p.to.elements) return;
  const WinogradElement at = winograd_element(p.to, i, kPoints);
  const int64_t matrix = static_cast<int64_t>(p.to.slow.divisor) * p.to.fast.divisor;
  const WinogradTile t = winograd_tile(p.tiling, p.first_tile + at.tile);
  const auto window =
      winograd_window<kExtent>(p.images,
                               byte_offset(x, at.group * p.group_bytes + t.n * p.images.stride_n +
                                                  at.channel * p.images.stride_c),
                               t.y * p.step - p.pad_h, t.x * p.step - p.pad_w);
  const bool any = at.tile < p.tiles && at.channel < p.channels;
  raw_pixel_t<scalar_t> pixels[kExtent * kExtent];
  load_window<kExtent, false>(p.images, window.corner, any ? window.exists : 0, pixels);
  v += at.offset;
  winograd_nest<Transform>(
      [&](int r, int s) { return widen<scalar_t>(pixels[r * kExtent + s]); },
      [&](int r, int s, float value) { v[(r * Transform::kOut + s) * matrix] = value; });
}

struct WinogradOutputParams {
  WinogradImages images;
  int64_t group_bytes;
  WinogradTiling tiling;
  WinogradMatrices from;
  uint32_t first_tile;
  int32_t tiles, channels;
  // Of fprop; the residual is dense where `images` may be a slice.
  StoreEpilogue<float> epilogue;
  WinogradImages residual;
  // Then a block has a rectangle of `from`, and tile_blocks and channel_blocks count them.
  MomentTiles<float> moments;
  FastDivmod tile_blocks, channel_blocks;
};

// Tiles and channels of a block that leaves moments: 32 bytes of neighbouring channels in NHWC.
constexpr int winograd_moment_tiles(bool channels_fast) { return channels_fast ? 16 : 32; }
constexpr int winograd_moment_channels(bool channels_fast) {
  return kWinogradTransformThreads / winograd_moment_tiles(channels_fast);
}

// A thread's element of its block's rectangle.
__device__ __forceinline__ WinogradElement winograd_block_element(const WinogradOutputParams& p,
                                                                  uint32_t block, int points) {
  const WinogradMatrices& m = p.from;
  const int tiles = winograd_moment_tiles(m.channels_fast);
  const int channels = winograd_moment_channels(m.channels_fast);
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t tile_block, channel_block;
  const uint32_t group =
      p.channel_blocks.divmod(p.tile_blocks.divmod(block, tile_block), channel_block);
  const int tile = tile_block * tiles + (m.channels_fast ? thread / channels : thread % tiles);
  const int channel =
      channel_block * channels + (m.channels_fast ? thread % channels : thread / tiles);
  const int64_t matrix = static_cast<int64_t>(m.slow.divisor) * m.fast.divisor;
  return {tile, channel, static_cast<int32_t>(group),
          group * points * matrix + (m.channels_fast
                                         ? static_cast<int64_t>(tile) * m.fast.divisor + channel
                                         : static_cast<int64_t>(channel) * m.fast.divisor + tile)};
}

template <class Wino, class scalar_t>
__device__ __forceinline__ void winograd_output_tile(const WinogradOutputParams& p,
                                                     const WinogradElement& at, const float* m,
                                                     const scalar_t* __restrict__ bias,
                                                     scalar_t* __restrict__ y) {
  constexpr int kTile = Wino::kTile, kOut = Wino::kOut;
  const int64_t matrix = static_cast<int64_t>(p.from.slow.divisor) * p.from.fast.divisor;
  m += at.offset;
  const float b = bias == nullptr
                      ? 0.f
                      : to_acc(bias[static_cast<int64_t>(at.group) * p.channels + at.channel]);
  float values[kOut][kOut];
  winograd_nest<WinogradOutput<Wino>>([&](int r, int s) { return m[(r * kTile + s) * matrix]; },
                                      [&](int r, int s, float value) { values[r][s] = value + b; });
  const WinogradTile t = winograd_tile(p.tiling, p.first_tile + at.tile);
  const int32_t y0 = t.y * kOut, x0 = t.x * kOut;
  if (p.epilogue.any) {
    const scalar_t* const residual = byte_offset(
        static_cast<const scalar_t*>(p.epilogue.residual),
        at.group * p.group_bytes + t.n * p.residual.stride_n + at.channel * p.residual.stride_c +
            y0 * static_cast<int64_t>(p.residual.stride_h) +
            x0 * static_cast<int64_t>(p.residual.stride_w));
#pragma unroll
    for (int row = 0; row < kOut; ++row)
      if (row < p.residual.height - y0)
        apply_to_row(p.epilogue, p.residual, !p.from.channels_fast,
                     byte_offset(residual, row * p.residual.stride_h), p.residual.width - x0,
                     values[row]);
  }
  scalar_t* to = byte_offset(y, at.group * p.group_bytes + t.n * p.images.stride_n +
                                    at.channel * p.images.stride_c +
                                    y0 * static_cast<int64_t>(p.images.stride_h) +
                                    x0 * static_cast<int64_t>(p.images.stride_w));
  store_tile<kOut>(p.images, !p.from.channels_fast, to, p.images.height - y0, p.images.width - x0,
                   values);
}

template <class Wino, class scalar_t, bool STATS>
__global__ void __launch_bounds__(kWinogradTransformThreads)
    conv_output_winograd_kernel(const WinogradOutputParams p, const float* __restrict__ m,
                                const scalar_t* __restrict__ bias, scalar_t* __restrict__ y) {
  constexpr int kPoints = Wino::kTile * Wino::kTile;
  const uint32_t i = blockIdx.x * kWinogradTransformThreads + threadIdx.x;
  if (!STATS && i >= p.from.elements) return;
  const WinogradElement at =
      STATS ? winograd_block_element(p, blockIdx.x, kPoints) : winograd_element(p.from, i, kPoints);
  if (at.tile < p.tiles && at.channel < p.channels) winograd_output_tile<Wino>(p, at, m, bias, y);
  const auto leave = [&](auto nhwc) {
    constexpr bool kNhwc = decltype(nhwc)::value;
    const WinogradElement at = winograd_block_element(p, block_index_again(), kPoints);
    constexpr int TILES = winograd_moment_tiles(kNhwc), CHANNELS = winograd_moment_channels(kNhwc);
    const int channel0 = at.channel / CHANNELS * CHANNELS;
    const uint32_t first_tile = p.first_tile + at.tile / TILES * TILES;
    winograd_moments<Wino, kNhwc, TILES>(
        p.images, p.tiling,
        static_cast<const scalar_t*>(
            byte_offset(y, at.group * p.group_bytes + channel0 * p.images.stride_c)),
        first_tile, p.first_tile + p.tiles, min(CHANNELS, p.channels - channel0),
        kWinogradTransformThreads,
        p.moments.to + (static_cast<int64_t>(at.group) * p.channels + channel0) * p.moments.tiles +
            first_tile / TILES,
        p.moments.tiles);
  };
  if constexpr (STATS) {
    if (p.from.channels_fast)
      leave(std::true_type());
    else
      leave(std::false_type());
  }
}

// M [splits][group][point][slow = k][fast = c] of one chunk of tiles; the sums over the chunks so
// far in `total` [9][group][k][c], which neither the only chunk reads nor the last one writes.
struct WinogradWgradOutputParams {
  WinogradMatrices from;  // channels_fast
  int32_t K, C;           // of a group, that exist
  int32_t splits;
  int64_t split_stride;  // elements
  bool first, last;
  int64_t total_stride;                                      // groups * K * C
  int64_t stride_g, stride_k, stride_c, stride_r, stride_s;  // of dw, elements
};

template <class Wino, class scalar_t>
__global__ void __launch_bounds__(kWinogradTransformThreads)
    conv_wgrad_winograd_output_kernel(const WinogradWgradOutputParams p,
                                      const float* __restrict__ m, float* __restrict__ total,
                                      scalar_t* __restrict__ dw) {
  constexpr int kTile = Wino::kTile;
  const uint32_t i = blockIdx.x * kWinogradTransformThreads + threadIdx.x;
  if (i >= p.from.elements) return;
  const WinogradElement at = winograd_element(p.from, i, kTile * kTile);
  const int32_t k = at.tile, c = at.channel;
  if (k >= p.K || c >= p.C) return;
  const int64_t matrix = static_cast<int64_t>(p.from.slow.divisor) * p.from.fast.divisor;
  m += at.offset;
  total += (static_cast<int64_t>(at.group) * p.K + k) * p.C + c;
  dw += at.group * p.stride_g + k * p.stride_k + c * p.stride_c;
  float sums[kTile * kTile] = {};
#pragma unroll 1
  for (int32_t split = 0; split < p.splits; ++split, m += p.split_stride)
#pragma unroll
    for (int e = 0; e < kTile * kTile; ++e) sums[e] += m[e * matrix];
  winograd_nest<WinogradWgradOutput<Wino>>(
      [&](int r, int s) { return sums[r * kTile + s]; },
      [&](int r, int s, float value) {
        float* const so_far = total + (r * 3 + s) * p.total_stride;
        const float sum = p.first ? value : *so_far + value;
        if (p.last)
          dw[r * p.stride_r + s * p.stride_s] = from_acc<scalar_t>(sum);
        else
          *so_far = sum;
      });
}

}  // namespace fastconv::cuda
