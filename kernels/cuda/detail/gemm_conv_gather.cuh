// fprop and dgrad as one implicit GEMM that gathers: dst[n, kd, pixel] = sum over (ks, tap) of
// src[n, ks, origin + step * pixel + tap_step * tap] * w. For fprop dst = y, src = x. For dgrad
// dst = dx, src = dy, and the pixels of dx fall into prod(stride) classes by (h + padding) mod
// stride along each axis: a class sees only the taps with r * dilation in the same residue, and is
// over these a convolution of stride 1 with its own origin. So nothing is multiplied by inserted
// zeros: a 3x3 filter of stride 2 gives classes of 4, 2, 2 and 1 taps.
//
// Along an axis, for a class with first pixel h0 and first tap tap0:
//
//   taps     r = tap0 + j * period, with period = stride / gcd(stride, dilation)
//   reads    o = (h0 + padding - tap0 * dilation) / stride + h' - j * (period * dilation / stride)
//   writes   h = h0 + stride * h'
#pragma once
#include "gemm.cuh"
#include "gemm_conv_maps.cuh"
#include "gemm_moments.cuh"

namespace fastconv::cuda {

struct ConvGatherParams {
  const void *src, *w, *bias;
  void* dst;
  int64_t images;
  int src_channels, dst_channels, groups;  // channels per group
  int src_extent[3], dst_extent[3], filter[3], stride[3], padding[3], dilation[3];
  int tap_period[3], tap_step[3];  // dgrad: step is -period * dilation / stride; fprop: 1, dilation
  bool vec4, residual_vec4;        // see GemmStore
  int dst_pitch;                   // channels from one pixel (image) of dst to the next
  StoreEpilogue<float> epilogue;   // fprop
  TileMoment* partial;             // fprop: moments of dst, [channels][pixel tiles], or null
  FastDivmod channels;             // by src_channels
  // Of the block's index: by channel tiles and pixel tiles (of the largest class, of one group) and
  // groups; dgrad: by the residues that have a pixel, at most stride, of each axis.
  FastDivmod channel_tiles, pixel_tiles, group_count, class_count[3];
  FastDivmod stride_by[3], period_by[3];  // dgrad
  int most_pixels[3], most_taps[3];       // along an axis, of all classes
  // By a class's pixels per image, plane and row, and by its taps in all, per plane and row. Along
  // an axis a class has the most of all classes or one less: bit 0 (W), 1 (H), 2 (D) of the index.
  FastDivmod image[8], plane[4], row[2];
  FastDivmod taps[8], tap_plane[4], tap_row[2];
};

// One parity class; fprop has one.
struct ConvGatherClass {
  int extent[3], taps[3];            // pixels and taps along each axis
  int first[3], origin[3], tap0[3];  // of dst, of src, of the filter
};

// Axis `axis` of the class with residue `first` there.
__device__ __forceinline__ void conv_gather_class_axis(const ConvGatherParams& p, int axis,
                                                       int first, ConvGatherClass& c) {
  const int stride = p.stride[axis], dilation = p.dilation[axis], period = p.tap_period[axis];
  uint32_t wanted, add;
  const int strides = static_cast<int>(p.stride_by[axis].divmod(first + p.padding[axis], wanted));
  p.stride_by[axis].divmod(dilation, add);
  // Least tap with tap * dilation = first + padding (mod stride); none: period.
  int tap0 = 0, residue = 0;
  while (tap0 < period && residue != static_cast<int>(wanted)) {
    ++tap0;
    residue += static_cast<int>(add);
    if (residue >= stride) residue -= stride;
  }
  const int filter = tap0 < period ? p.filter[axis] : 0;
  c.first[axis] = first;
  c.tap0[axis] = tap0;
  c.taps[axis] =
      filter > tap0 ? static_cast<int>(p.period_by[axis].div(filter - tap0 + period - 1)) : 0;
  // tap0 * dilation has the same residue, so that this is exact.
  c.origin[axis] =
      filter > tap0 ? strides - static_cast<int>(p.stride_by[axis].div(tap0 * dilation)) : 0;
  c.extent[axis] = static_cast<int>(p.stride_by[axis].div(p.dst_extent[axis] - first + stride - 1));
}

// The pixels [start, start + count) of a class, as coordinates of src or of dst.
__device__ __forceinline__ PixelMap conv_gather_pixels(const ConvGatherParams& p, int variant,
                                                       int first, int count, const int (&origin)[3],
                                                       const int (&step)[3], const int (&extent)[3],
                                                       int pixel_stride, int image_stride) {
  return {p.image[variant],
          p.plane[variant & 3],
          p.row[variant & 1],
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

  uint32_t channel_tile, pixel_tile, group_index;
  uint32_t index = p.channel_tiles.divmod(blockIdx.x, channel_tile);
  index = p.pixel_tiles.divmod(index, pixel_tile);
  index = p.group_count.divmod(index, group_index);
  const int channel0 = static_cast<int>(channel_tile) * BLOCK_CHANNELS;
  const int group = static_cast<int>(group_index);
  ConvGatherClass c;
  int pixel_variant = 7, tap_variant = 7;
  if constexpr (DGRAD) {
    FC_SHARED(ConvGatherClass, block_class, [1]);
    uint32_t first[3];  // residues
    index = p.class_count[2].divmod(index, first[2]);
    first[0] = p.class_count[1].divmod(index, first[1]);
    if (threadIdx.x < 3) {
      const int axis = threadIdx.x;
      conv_gather_class_axis(p, axis,
                             axis == 0   ? first[0]
                             : axis == 1 ? first[1]
                                         : first[2],
                             block_class[0]);
    }
    __syncthreads();
    c = block_class[0];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      if (c.extent[axis] != p.most_pixels[axis]) pixel_variant -= 4 >> axis;
      if (c.taps[axis] != p.most_taps[axis]) tap_variant -= 4 >> axis;
    }
  } else {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      c.extent[axis] = p.dst_extent[axis];
      c.taps[axis] = p.filter[axis];
      c.first[axis] = c.tap0[axis] = 0;
      c.origin[axis] = -p.padding[axis];
    }
  }

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
  const int src_all = p.src_channels * p.groups, dst_all = p.dst_pitch;
  const int src_pixel_stride = NHWC ? src_all : 1, src_channel_stride = NHWC ? 1 : src_size;
  const int dst_pixel_stride = NHWC ? dst_all : 1, dst_channel_stride = NHWC ? 1 : dst_size;
  const int src_image_stride = src_all * src_size, dst_image_stride = dst_all * dst_size;

  // The gathered operand: [pixels, gemm_k].
  const scalar_t* src = static_cast<const scalar_t*>(p.src) + image0 * src_image_stride +
                        static_cast<int64_t>(group) * p.src_channels * src_channel_stride;
  const int one[3] = {1, 1, 1};
  const PixelMap pixel_coordinates =
      conv_gather_pixels(p, pixel_variant, first, count, c.origin, DGRAD ? one : p.stride,
                         p.src_extent, src_pixel_stride, src_image_stride);
  const int taps = c.taps[0] * c.taps[1] * c.taps[2];
  const int gemm_k = taps * p.src_channels;
  const Box box{{p.src_extent[0], p.src_extent[1], p.src_extent[2]}};
  const FastDivmod& inner = NHWC ? p.channels : p.taps[tap_variant];
  const TapChannelKMap<NHWC, BLOCK_K> tap_coordinates{
      {inner,
       p.tap_plane[tap_variant & 3],
       p.tap_row[tap_variant & 1],
       0,
       gemm_k,
       {p.tap_step[0], p.tap_step[1], p.tap_step[2]},
       {p.src_extent[1], p.src_extent[2], src_pixel_stride},
       src_channel_stride}};
  unsigned char* const tables = shared + Tile::RING_BYTES;
  int* const src_table = reinterpret_cast<int*>(shared + gemm_shared_bytes<Tile>());
  int* const w_table = src_table + kMaskTaps + 1;

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
  const auto pixels_of = [&](scalar_t*& base, int pixel_stride, int image_stride) {
    if constexpr (!DGRAD && NHWC) {
      base += start * pixel_stride;  // the tile's pixels are neighbours, whatever their images
      return StrideMap{pixel_stride, count};
    } else {
      base += image0 * image_stride;
      return conv_gather_pixels(p, pixel_variant, first, count, c.first, DGRAD ? p.stride : one,
                                p.dst_extent, pixel_stride, image_stride);
    }
  };
  const auto dst_pixels = pixels_of(dst, dst_pixel_stride, dst_image_stride);
  using DstPixels = std::decay_t<decltype(dst_pixels)>;
  const StrideMap dst_channels{dst_channel_stride, p.dst_channels - channel0};
  const scalar_t* bias = static_cast<const scalar_t*>(p.bias);
  if (bias != nullptr) bias += group * p.dst_channels + channel0;
  const auto epilogue = [&] {
    if constexpr (DGRAD) {
      return GemmNoEpilogue{};
    } else {
      const int all = p.dst_channels * p.groups;
      auto* residual =
          static_cast<scalar_t*>(const_cast<void*>(p.epilogue.residual)) +
          (static_cast<int64_t>(group) * p.dst_channels + channel0) * dst_channel_stride;
      const auto pixels = pixels_of(residual, NHWC ? all : 1, all * dst_size);
      if constexpr (NHWC)
        return GemmEpilogue<scalar_t, DstPixels, StrideMap>{p.epilogue, residual, pixels,
                                                            dst_channels, p.residual_vec4};
      else
        return GemmEpilogue<scalar_t, StrideMap, DstPixels>{p.epilogue, residual, dst_channels,
                                                            pixels, p.residual_vec4};
    }
  }();
  using Epilogue = std::decay_t<decltype(epilogue)>;

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
  load_src.start();
  load_w.start();
  const int k_tiles = (gemm_k + BLOCK_K - 1) / BLOCK_K;
  const auto put_moments = [&] {
    if constexpr (!DGRAD) {
      if (p.partial == nullptr) return;
      const int64_t pitch = p.pixel_tiles.divisor;
      const int64_t channel = static_cast<int64_t>(group) * p.dst_channels + channel0;
      const GemmMoments moments{p.partial + channel * pitch + pixel_tile, pitch,
                                p.dst_channels - channel0, count};
      gemm_moments<Tile, NHWC>(moments, bias, shared);
    }
  };
  if constexpr (NHWC) {
    GemmWarp<Tile, SrcTile::K_CONTIGUOUS, WTile::K_CONTIGUOUS> warp;
    gemm_mainloop<Tile>(warp, load_src, load_w, k_tiles, shared);
    const GemmStore<scalar_t, DstPixels, StrideMap, GemmBias::kPerColumn, Epilogue> store{
        dst, dst_pixels, dst_channels, p.vec4, bias, epilogue};
    gemm_epilogue<Tile>(warp, store, shared);
    put_moments();
  } else {
    GemmWarp<Tile, WTile::K_CONTIGUOUS, SrcTile::K_CONTIGUOUS> warp;
    gemm_mainloop<Tile>(warp, load_w, load_src, k_tiles, shared);
    const GemmStore<scalar_t, StrideMap, DstPixels, GemmBias::kPerRow, Epilogue> store{
        dst, dst_channels, dst_pixels, p.vec4, bias, epilogue};
    gemm_epilogue<Tile>(warp, store, shared);
    put_moments();
  }
}

// Dynamic shared memory of conv_gather: the offsets of the taps on top.
template <class Tile>
constexpr int conv_gather_shared_bytes() {
  return gemm_shared_bytes<Tile>(8 * (kMaskTaps + 1));
}

}  // namespace fastconv::cuda
