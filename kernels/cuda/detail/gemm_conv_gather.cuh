// fprop and dgrad as one implicit GEMM that gathers: dst[n, kd, pixel] = sum over (ks, tap) of
// src[n, ks, origin + step * pixel + tap_step * tap] * w. For fprop dst = y, src = x. For dgrad
// dst = dx, src = dy, and the pixels of dx fall into prod(stride) classes by (h + padding) mod
// stride along each axis: a class sees only the taps with r * dilation in the same residue, and is
// over these a convolution of stride 1 with its own origin. So nothing is multiplied by inserted
// zeros: a 3x3 filter of stride 2 gives classes of 4, 2, 2 and 1 taps.
//
//   taps of a class: r = tap0 + j * period, period = stride / gcd(stride, dilation)
//   read at          o = (h0 + padding - tap0 * dilation) / stride + h' - j *
//   period*dilation/stride written at       h = h0 + stride * h'
#pragma once
#include "gemm.cuh"
#include "gemm_conv_maps.cuh"

namespace fastconv::cuda {

struct ConvGatherParams {
  const void *src, *w, *bias;
  void* dst;
  int64_t images;
  int src_channels, dst_channels, groups;  // channels per group
  int src_extent[3], dst_extent[3], filter[3], stride[3], padding[3], dilation[3];
  int classes[3];                  // dgrad: residues that have a pixel: at most stride
  int tap_period[3], tap_step[3];  // dgrad: step is -period * dilation / stride; fprop: 1, dilation
  int pixel_tiles, channel_tiles;  // of the largest class, of one group
  bool vec4;                       // see GemmStore
  FastDivmod channels;             // by src_channels
  // By a class's pixels per image, plane and row, and by its taps in all, per plane and row. Along
  // an axis a class has the most of all classes or one less: bit 0 (W), 1 (H), 2 (D) of the index.
  FastDivmod image[8], plane[4], row[2];
  FastDivmod taps[8], tap_plane[4], tap_row[2];
};

// One parity class; fprop has one.
struct ConvGatherClass {
  int extent[3], taps[3];            // pixels and taps along each axis
  int first[3], origin[3], tap0[3];  // of dst, of src, of the filter
  int pixel_variant, tap_variant;    // which of the divisors
};

template <bool DGRAD>
__device__ __forceinline__ ConvGatherClass conv_gather_class(const ConvGatherParams& p,
                                                             unsigned index) {
  ConvGatherClass c;
  c.pixel_variant = c.tap_variant = 7;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    if constexpr (!DGRAD) {
      c.extent[axis] = p.dst_extent[axis];
      c.taps[axis] = p.filter[axis];
      c.first[axis] = c.tap0[axis] = 0;
      c.origin[axis] = -p.padding[axis];
      continue;
    }
    const int stride = p.stride[axis], period = p.tap_period[axis];
    const int first = static_cast<int>(index % p.classes[axis]);
    index /= p.classes[axis];
    // Least tap with tap * dilation = first + padding (mod stride); none: period.
    const int wanted = (first + p.padding[axis]) % stride, add = p.dilation[axis] % stride;
    int tap0 = 0;
    for (int residue = 0; tap0 < period && residue != wanted; ++tap0) {
      residue += add;
      if (residue >= stride) residue -= stride;
    }
    const int filter = tap0 < period ? p.filter[axis] : 0;
    c.first[axis] = first;
    c.tap0[axis] = tap0;
    c.taps[axis] = filter > tap0 ? (filter - tap0 + period - 1) / period : 0;
    c.origin[axis] = (first + p.padding[axis] - tap0 * p.dilation[axis]) / stride;
    c.extent[axis] =
        p.dst_extent[axis] > first ? (p.dst_extent[axis] - first + stride - 1) / stride : 0;
    const int bit = 4 >> axis;
    if (c.extent[axis] != (p.dst_extent[axis] + stride - 1) / stride) c.pixel_variant -= bit;
    if (c.taps[axis] != (p.filter[axis] + period - 1) / period) c.tap_variant -= bit;
  }
  return c;
}

// The pixels [start, start + count) of a class, as coordinates of src or of dst.
__device__ __forceinline__ PixelMap conv_gather_pixels(const ConvGatherParams& p,
                                                       const ConvGatherClass& c, int first,
                                                       int count, const int (&origin)[3],
                                                       const int (&step)[3], const int (&extent)[3],
                                                       int pixel_stride, int image_stride) {
  return {p.image[c.pixel_variant],
          p.plane[c.pixel_variant & 3],
          p.row[c.pixel_variant & 1],
          first,
          count,
          {origin[0], origin[1], origin[2]},
          {step[0], step[1], step[2]},
          {extent[1], extent[2], pixel_stride},
          image_stride};
}

// grid.x: classes x groups x pixel tiles x channel tiles, the last fastest, so that blocks that run
// side by side read the same pixels. NHWC: gemm_m = pixels, gemm_n = channels; NCHW: the reverse,
// so that gemm_n is contiguous in dst. VEC_SRC, VEC_W: elements per copy.
// TAP_TABLE: the iterators with masks and a table of taps (at most kMaskTaps of them), else the
// analytic ones.
template <class Tile, bool DGRAD, bool NHWC, int VEC_SRC, int VEC_W, bool TAP_TABLE>
__device__ __forceinline__ void conv_gather(const ConvGatherParams& p) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int BLOCK_K = Tile::BLOCK_K, THREADS = Tile::NUM_THREADS;
  constexpr int BLOCK_PIXELS = NHWC ? Tile::BLOCK_M : Tile::BLOCK_N;
  constexpr int BLOCK_CHANNELS = NHWC ? Tile::BLOCK_N : Tile::BLOCK_M;
  FC_DYN_SHARED(unsigned char, shared);

  unsigned index = blockIdx.x;
  const int channel0 = static_cast<int>(index % p.channel_tiles) * BLOCK_CHANNELS;
  index /= p.channel_tiles;
  const unsigned pixel_tile = index % p.pixel_tiles;
  index /= p.pixel_tiles;
  const int group = static_cast<int>(index % p.groups);
  const ConvGatherClass c = conv_gather_class<DGRAD>(p, index / p.groups);

  const int per_image = c.extent[0] * c.extent[1] * c.extent[2];
  const int64_t start = static_cast<int64_t>(pixel_tile) * BLOCK_PIXELS;
  const int64_t pixels = p.images * per_image;
  if (start >= pixels) return;  // a class smaller than the largest
  const int count = static_cast<int>(pixels - start < BLOCK_PIXELS ? pixels - start : BLOCK_PIXELS);
  const int64_t image0 = start / per_image;
  const int first = static_cast<int>(start - image0 * per_image);

  // Strides in elements, of all groups together.
  const int src_size = p.src_extent[0] * p.src_extent[1] * p.src_extent[2];
  const int dst_size = p.dst_extent[0] * p.dst_extent[1] * p.dst_extent[2];
  const int src_all = p.src_channels * p.groups, dst_all = p.dst_channels * p.groups;
  const int src_pixel_stride = NHWC ? src_all : 1, src_channel_stride = NHWC ? 1 : src_size;
  const int dst_pixel_stride = NHWC ? dst_all : 1, dst_channel_stride = NHWC ? 1 : dst_size;
  const int src_image_stride = src_all * src_size, dst_image_stride = dst_all * dst_size;

  // The gathered operand: [pixels, gemm_k].
  const scalar_t* src = static_cast<const scalar_t*>(p.src) + image0 * src_image_stride +
                        static_cast<int64_t>(group) * p.src_channels * src_channel_stride;
  const int one[3] = {1, 1, 1};
  const PixelMap pixel_coordinates =
      conv_gather_pixels(p, c, first, count, c.origin, DGRAD ? one : p.stride, p.src_extent,
                         src_pixel_stride, src_image_stride);
  const int taps = c.taps[0] * c.taps[1] * c.taps[2];
  const int gemm_k = taps * p.src_channels;
  const Box box{{p.src_extent[0], p.src_extent[1], p.src_extent[2]}};
  const FastDivmod& inner = NHWC ? p.channels : p.taps[c.tap_variant];
  const TapChannelKMap<NHWC, BLOCK_K> tap_coordinates{
      {inner,
       p.tap_plane[c.tap_variant & 3],
       p.tap_row[c.tap_variant & 1],
       0,
       gemm_k,
       {p.tap_step[0], p.tap_step[1], p.tap_step[2]},
       {p.src_extent[1], p.src_extent[2], src_pixel_stride},
       src_channel_stride}};
  int* const src_table = reinterpret_cast<int*>(shared + Tile::RING_BYTES);
  int* const w_table = src_table + kMaskTaps + 1;
  unsigned char* const tables = reinterpret_cast<unsigned char*>(w_table + kMaskTaps + 1);

  // The weights: [channels of dst, gemm_k]. fprop has them in the order of gemm_k already; dgrad
  // takes the class's taps of [K, T, R, S, C/g] or [K, C/g, T, R, S].
  const int filter_size = p.filter[0] * p.filter[1] * p.filter[2];
  const int w_mn_stride = DGRAD ? (NHWC ? 1 : filter_size) : gemm_k;
  const scalar_t* w = static_cast<const scalar_t*>(p.w) +
                      static_cast<int64_t>(group) * p.dst_channels * p.src_channels * filter_size +
                      static_cast<int64_t>(channel0) * w_mn_stride;
  const int w_tap_stride = NHWC ? p.dst_channels : 1;  // of dgrad
  if constexpr (DGRAD)
    w += ((c.tap0[0] * p.filter[1] + c.tap0[1]) * p.filter[2] + c.tap0[2]) * w_tap_stride;
  const StrideMap w_channels{w_mn_stride, p.dst_channels - channel0};
  const TapChannelKMap<NHWC, BLOCK_K> w_tap_coordinates{
      {inner,
       tap_coordinates.tap_plane,
       tap_coordinates.tap_row,
       0,
       gemm_k,
       {p.tap_period[0], p.tap_period[1], p.tap_period[2]},
       {p.filter[1], p.filter[2], w_tap_stride},
       p.dst_channels * filter_size}};
  if constexpr (TAP_TABLE) {
    if (threadIdx.x <= kMaskTaps) {
      const int tap = threadIdx.x;
      src_table[tap] = tap < taps ? tap_coordinates.tap(tap).offset : 0;
      if constexpr (DGRAD) w_table[tap] = tap < taps ? w_tap_coordinates.tap(tap).offset : 0;
    }
    __syncthreads();
  }
  const auto src_pixels = [&] {
    if constexpr (TAP_TABLE)
      return MaskedPixelMap{pixel_coordinates,
                            {c.taps[0], c.taps[1], c.taps[2]},
                            {p.tap_step[0], p.tap_step[1], p.tap_step[2]},
                            box};
    else
      return pixel_coordinates;
  }();
  const auto src_taps = [&] {
    if constexpr (TAP_TABLE)
      return TapTableKMap<NHWC, true, BLOCK_K>{inner, 0, gemm_k, src_channel_stride, src_table};
    else
      return tap_coordinates;
  }();
  const auto w_taps = [&] {
    if constexpr (!DGRAD)
      return StrideKMap<BLOCK_K>{1, gemm_k};
    else if constexpr (TAP_TABLE)
      return TapTableKMap<NHWC, false, BLOCK_K>{inner, 0, gemm_k, p.dst_channels * filter_size,
                                                w_table};
    else
      return w_tap_coordinates;
  }();

  // Where the tile goes.
  scalar_t* dst = static_cast<scalar_t*>(p.dst) +
                  (static_cast<int64_t>(group) * p.dst_channels + channel0) * dst_channel_stride;
  const auto dst_pixels = [&] {
    if constexpr (!DGRAD && NHWC) {
      dst += start * dst_pixel_stride;  // the tile's pixels are neighbours, whatever their images
      return StrideMap{dst_pixel_stride, count};
    } else {
      dst += image0 * dst_image_stride;
      return conv_gather_pixels(p, c, first, count, c.first, DGRAD ? p.stride : one, p.dst_extent,
                                dst_pixel_stride, dst_image_stride);
    }
  }();
  using DstPixels = std::decay_t<decltype(dst_pixels)>;
  const StrideMap dst_channels{dst_channel_stride, p.dst_channels - channel0};
  const scalar_t* bias = static_cast<const scalar_t*>(p.bias);
  if (bias != nullptr) bias += group * p.dst_channels + channel0;

  using SrcTile = OperandTile<scalar_t, BLOCK_PIXELS, NHWC>;
  using WTile = OperandTile<scalar_t, BLOCK_CHANNELS, !(DGRAD && NHWC)>;
  using SrcLoader =
      GemmLoader<SrcTile, THREADS, VEC_SRC, TAP_TABLE ? GemmCheck::kMask : GemmCheck::kBox,
                 std::decay_t<decltype(src_pixels)>, std::decay_t<decltype(src_taps)>>;
  using WLoader = GemmLoader<WTile, THREADS, VEC_W, GemmCheck::kSign, StrideMap,
                             std::decay_t<decltype(w_taps)>>;
  SrcLoader load_src(src, src_pixels, src_taps, box, NHWC ? 0 : Tile::STAGE_B, tables);
  WLoader load_w(w, w_channels, w_taps, box, NHWC ? Tile::STAGE_B : 0,
                 tables + SrcLoader::TABLE_BYTES);
  __syncthreads();
  const int k_tiles = (gemm_k + BLOCK_K - 1) / BLOCK_K;
  if constexpr (NHWC) {
    GemmWarp<Tile, SrcTile::K_CONTIGUOUS, WTile::K_CONTIGUOUS> warp;
    gemm_mainloop<Tile>(warp, load_src, load_w, k_tiles, shared);
    const GemmStore<scalar_t, DstPixels, StrideMap, GemmBias::kPerColumn> store{
        dst, dst_pixels, dst_channels, p.vec4, bias};
    gemm_epilogue<Tile>(warp, store, reinterpret_cast<float*>(shared));
  } else {
    GemmWarp<Tile, WTile::K_CONTIGUOUS, SrcTile::K_CONTIGUOUS> warp;
    gemm_mainloop<Tile>(warp, load_w, load_src, k_tiles, shared);
    const GemmStore<scalar_t, StrideMap, DstPixels, GemmBias::kPerRow> store{
        dst, dst_channels, dst_pixels, p.vec4, bias};
    gemm_epilogue<Tile>(warp, store, reinterpret_cast<float*>(shared));
  }
}

// Dynamic shared memory of conv_gather: the ring, the offsets of the taps, and a table of pixel
// coordinates where a thread would hold too many (see GemmLoader).
template <class Tile>
constexpr int conv_gather_shared_bytes() {
  return Tile::RING_BYTES + 8 * (kMaskTaps + 1) + 16 * (Tile::BLOCK_M + Tile::BLOCK_N);
}

}  // namespace fastconv::cuda
