// GoogLeNet's module, y = [a(W1 x), a(W3 * r3), a(W5 * r5), a(Wp max3x3(x))] along the channels,
// with [r3, r5] = a(Wr x), a = activation(. + bias), in two grids:
//
//   pointwise   the 1x1 convolutions of x as one product: rows of the joined weights [K1 + R3 + R5,
//               C] up to K1 go to y, the others to r, a tensor of their own; and the projection,
//               whose loader takes the maximum over x's 3x3 windows (detail/gemm_pool_loader.cuh)
//   windows     the 3x3 and the 5x5 (any two odd extents with at most kMaskTaps taps), each from
//   its
//               channels of r into its channels of y
//
// Grouped: a block's index says which product of the grid its tile is of. All products have the
// same pixels; the one with the longest tiles comes first, so that short ones fill the last round.
//   NHWC: gemm_m = pixels, gemm_n = output channels, gemm_k = (tap, channel)
//   NCHW: gemm_m = output channels, gemm_n = pixels, gemm_k = (channel, tap)
// fp32 (FFMA, or tensor cores by one or three products of TF32), bf16, fp16; accumulation in fp32.
//
// At one image few tiles share the SMs and gemm_k is long, so that latency bounds: tiles of 32x32
// cut gemm_k among the slices of a block (detail/gemm_slices.cuh). Bytes from DRAM: x, the weights
// and y once, r twice; L2 serves what tiles share. FLOPs: those of the six convolutions.
// Workspace: none beside r, which backward needs. Deterministic. Speed: not measured on a GPU.
// Source: Szegedy et al., "Going Deeper with Convolutions", 2015, figure 2(b); implicit GEMM as in
// conv_fprop_im2col.cuh.
#pragma once
#include "detail/gemm_conv_maps.cuh"
#include "detail/gemm_pool_loader.cuh"
#include "detail/gemm_slices.cuh"

namespace fastconv::cuda {

// Where channels of a result go.
struct InceptionTarget {
  void* base;  // of the first of them
  int pitch;   // channels from one pixel (NHWC) or image (NCHW) to the next
};

// One product: src_channels channels of a tensor with src_pitch, filter [dst_channels, extent,
// extent, src_channels] or [dst_channels, src_channels, extent, extent].
struct InceptionProduct {
  const void *src, *w, *bias;  // src: of the first channel
  int src_channels, src_pitch, dst_channels, extent;
  int split;  // channels from here on go to `second`
  InceptionTarget first, second;
  bool vec4;             // groups of four, along the contiguous axis of the targets, lie aligned
  uint32_t first_block;  // of the grid
  FastDivmod channel_tiles, channels, taps, tap_row;
};

struct InceptionParams {
  InceptionProduct product[2];
  int64_t pixels;  // N H W
  int rows, row_pixels;
  FastDivmod image, row;  // by pixels per image, per row
  StoreEpilogue<float> epilogue;
};

// Which tile a block has.
struct InceptionTile {
  int channel0;
  int64_t start, image0;  // first pixel, and its image
  int first, count;       // first pixel within its image; pixels that there are

  __device__ __forceinline__ InceptionTile(const InceptionParams& p, const InceptionProduct& g,
                                           int block_pixels, int block_channels) {
    uint32_t tile;
    const int64_t pixel_tile = g.channel_tiles.divmod(blockIdx.x - g.first_block, tile);
    channel0 = static_cast<int>(tile) * block_channels;
    start = pixel_tile * block_pixels;
    const int64_t left = p.pixels - start;
    count = static_cast<int>(left < block_pixels ? left : block_pixels);
    const int per_image = static_cast<int>(p.image.divisor);
    image0 = start / per_image;
    first = static_cast<int>(start - image0 * per_image);
  }
};

// Bias, activation, and one of two targets. NHWC: rows are pixels, columns channels; NCHW: the
// reverse.
template <class out_t, bool NHWC>
struct InceptionStore {
  const InceptionParams& p;
  const InceptionProduct& g;
  const InceptionTile& tile;

  // Four columns, the same for all the rows that a thread writes.
  struct Columns {
    out_t* to[NHWC ? 4 : 1];  // NHWC: of the tile's first pixel; null: no such channel
    int pitch[NHWC ? 4 : 1];
    float bias[NHWC ? 4 : 1];
    int image[NHWC ? 1 : 4], pixel[NHWC ? 1 : 4];  // NCHW; image < 0: no such pixel
  };
  __device__ __forceinline__ Columns at(int n) const {
    Columns c;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (NHWC) {
        const int channel = tile.channel0 + n + e;
        const bool second = channel >= g.split, exists = channel < g.dst_channels;
        const InceptionTarget& t = second ? g.second : g.first;
        c.pitch[e] = t.pitch;
        c.to[e] = exists ? static_cast<out_t*>(t.base) + tile.start * t.pitch +
                               (second ? channel - g.split : channel)
                         : nullptr;
        c.bias[e] = exists ? to_acc(static_cast<const out_t*>(g.bias)[channel]) : 0.0f;
      } else {
        uint32_t pixel;
        const int image = static_cast<int>(p.image.divmod(tile.first + n + e, pixel));
        c.image[e] = n + e < tile.count ? image : -1;
        c.pixel[e] = static_cast<int>(pixel);
      }
    }
    return c;
  }

  __device__ __forceinline__ void store(int m, const Columns& c, float4 v) const {
    float values[4] = {v.x, v.y, v.z, v.w};
    if constexpr (NHWC) {
      if (m >= tile.count) return;
#pragma unroll
      for (int e = 0; e < 4; ++e) values[e] += c.bias[e];
      if (p.epilogue.any) activate_values(p.epilogue, values);
      if (g.vec4) {
        if (c.to[0] != nullptr) store_four(c.to[0] + static_cast<int64_t>(m) * c.pitch[0], values);
        return;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (c.to[e] != nullptr)
          c.to[e][static_cast<int64_t>(m) * c.pitch[e]] = from_acc<out_t>(values[e]);
    } else {
      const int channel = tile.channel0 + m;
      if (channel >= g.dst_channels) return;
      const float bias = to_acc(static_cast<const out_t*>(g.bias)[channel]);
#pragma unroll
      for (int e = 0; e < 4; ++e) values[e] += bias;
      if (p.epilogue.any) activate_values(p.epilogue, values);
      const bool second = channel >= g.split;
      const InceptionTarget& t = second ? g.second : g.first;
      const int size = static_cast<int>(p.image.divisor);
      const int64_t image_stride = static_cast<int64_t>(t.pitch) * size;
      out_t* const to = static_cast<out_t*>(t.base) + tile.image0 * image_stride +
                        static_cast<int64_t>(second ? channel - g.split : channel) * size;
      if (g.vec4) {
        if (c.image[0] >= 0) store_four(to + c.image[0] * image_stride + c.pixel[0], values);
        return;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (c.image[e] >= 0)
          to[c.image[e] * image_stride + c.pixel[e]] = from_acc<out_t>(values[e]);
    }
  }
};

// Of a slice.
template <class Tile, bool NHWC, int VEC_W>
using InceptionWeights =
    GemmLoader<OperandTile<typename Tile::scalar_t, NHWC ? Tile::BLOCK_N : Tile::BLOCK_M, true>,
               Tile::NUM_THREADS, VEC_W, GemmCheck::kSign, StrideMap, StrideKMap<Tile::BLOCK_K>,
               typename Tile::Threads>;
template <class Tile, bool NHWC>
using InceptionSource =
    OperandTile<typename Tile::scalar_t, NHWC ? Tile::BLOCK_M : Tile::BLOCK_N, NHWC>;

// What a slice of gemm_k is to a block's product.
template <class Tile>
struct InceptionSlice {
  int gemm_k, k0, k_tiles;  // k0: the slice's first
  unsigned char *ring, *tables;

  __device__ __forceinline__ InceptionSlice(int gemm_k_, unsigned char* shared)
      : gemm_k(gemm_k_),
        k0(Tile::slice() * slice_tiles<Tile>(gemm_k_) * Tile::BLOCK_K),
        k_tiles(slice_tiles<Tile>(gemm_k_)),
        ring(shared + Tile::slice() * Tile::RING_BYTES),
        tables(shared + Tile::TABLES + Tile::slice() * Tile::TABLE_BYTES) {}
};

// The product of one block. `source`: the loader of pixels, whose tables lie first.
template <class Tile, bool NHWC, int VEC_W, class Source>
__device__ __forceinline__ void inception_multiply(const InceptionParams& p,
                                                   const InceptionProduct& g,
                                                   const InceptionTile& tile,
                                                   const InceptionSlice<Tile>& slice,
                                                   Source& source, unsigned char* shared) {
  using scalar_t = typename Tile::scalar_t;
  using Weights = InceptionWeights<Tile, NHWC, VEC_W>;
  static_assert(Source::TABLE_BYTES + Weights::TABLE_BYTES <= Tile::TABLE_BYTES);
  const scalar_t* const w = static_cast<const scalar_t*>(g.w) +
                            static_cast<int64_t>(tile.channel0) * slice.gemm_k + slice.k0;
  Weights weights(w, StrideMap{slice.gemm_k, g.dst_channels - tile.channel0},
                  StrideKMap<Tile::BLOCK_K>{1, slice.gemm_k - slice.k0}, Box{},
                  NHWC ? Tile::STAGE_B : 0, slice.tables + Source::TABLE_BYTES);
  __syncthreads();
  source.start();
  weights.start();
  GemmWarp<Tile, true, NHWC> warp;
  if constexpr (NHWC)
    gemm_mainloop<Tile>(warp, source, weights, slice.k_tiles, slice.ring);
  else
    gemm_mainloop<Tile>(warp, weights, source, slice.k_tiles, slice.ring);
  const InceptionStore<scalar_t, NHWC> store{p, g, tile};
  sliced_epilogue<Tile>(warp, store, shared);
}

// Pixels of dense images by their number. (NCHW.)
struct ImagePixelMap : ImageKMap<1> {
  static constexpr bool CHEAP = false;
};

// product[0]: the projection; product[1]: the joined 1x1 convolutions.
template <class Tile, bool NHWC, int VEC_X, int VEC_W>
__global__ void __launch_bounds__(Tile::BLOCK_THREADS, Tile::MIN_BLOCKS)
    inception_fprop_pointwise_kernel(const InceptionParams p) {
  using scalar_t = typename Tile::scalar_t;
  using Operand = InceptionSource<Tile, NHWC>;
  constexpr int PIXELS = NHWC ? Tile::BLOCK_M : Tile::BLOCK_N;
  constexpr int CHANNELS = NHWC ? Tile::BLOCK_N : Tile::BLOCK_M;
  constexpr int PART = NHWC ? 0 : Tile::STAGE_B;
  FC_DYN_SHARED(unsigned char, shared);
  const InceptionSlice<Tile> slice(p.product[0].src_channels, shared);
  const int size = static_cast<int>(p.image.divisor), channels = p.product[0].src_channels;
  const int channel_stride = NHWC ? 1 : size, left = channels - slice.k0;
  const scalar_t* const x = static_cast<const scalar_t*>(p.product[0].src) +
                            static_cast<int64_t>(slice.k0) * channel_stride;
  const int64_t image_stride = static_cast<int64_t>(channels) * size;
  if (blockIdx.x < p.product[1].first_block) {
    const InceptionTile tile(p, p.product[0], PIXELS, CHANNELS);
    const WindowMap windows{
        p.image,
        p.row,
        tile.first,
        tile.count,
        p.rows,
        p.row_pixels,
        (NHWC ? channels : 1) * static_cast<int>(sizeof(scalar_t)),
        static_cast<uint32_t>(image_stride) * static_cast<uint32_t>(sizeof(scalar_t))};
    PoolGemmLoader<Operand, Tile::NUM_THREADS, VEC_X, typename Tile::Threads> source(
        x + tile.image0 * image_stride, windows, channel_stride, left, PART, slice.tables);
    inception_multiply<Tile, NHWC, VEC_W>(p, p.product[0], tile, slice, source, shared);
    return;
  }
  const InceptionTile tile(p, p.product[1], PIXELS, CHANNELS);
  using PixelsMap = std::conditional_t<NHWC, StrideMap, ImagePixelMap>;
  const PixelsMap pixels = [&] {
    if constexpr (NHWC)
      return StrideMap{channels, tile.count};
    else
      return ImagePixelMap{{p.image, tile.first, tile.count, static_cast<int>(image_stride)}};
  }();
  const scalar_t* const from = x + (NHWC ? tile.start * channels : tile.image0 * image_stride);
  GemmLoader<Operand, Tile::NUM_THREADS, VEC_X, GemmCheck::kSign, PixelsMap,
             StrideKMap<Tile::BLOCK_K>, typename Tile::Threads>
      source(from, pixels, StrideKMap<Tile::BLOCK_K>{channel_stride, left}, Box{}, PART,
             slice.tables);
  inception_multiply<Tile, NHWC, VEC_W>(p, p.product[1], tile, slice, source, shared);
}

template <class Tile, bool NHWC, int VEC_X, int VEC_W>
__global__ void __launch_bounds__(Tile::BLOCK_THREADS, Tile::MIN_BLOCKS)
    inception_fprop_windows_kernel(const InceptionParams p) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int PIXELS = NHWC ? Tile::BLOCK_M : Tile::BLOCK_N;
  constexpr int CHANNELS = NHWC ? Tile::BLOCK_N : Tile::BLOCK_M;
  static_assert(Tile::BLOCK_THREADS > kMaskTaps);
  FC_DYN_SHARED(unsigned char, shared);
  const InceptionProduct& g = p.product[blockIdx.x >= p.product[1].first_block ? 1 : 0];
  const InceptionTile tile(p, g, PIXELS, CHANNELS);
  const int size = static_cast<int>(p.image.divisor), extent = g.extent;
  const int pixel_stride = NHWC ? g.src_pitch : 1;
  const int image_stride = g.src_pitch * size;
  int* const taps = reinterpret_cast<int*>(shared + Tile::SHARED_BYTES);
  if (threadIdx.x <= kMaskTaps) {
    uint32_t s;
    const int r = static_cast<int>(g.tap_row.divmod(threadIdx.x, s));
    taps[threadIdx.x] = r < extent ? (r * p.row_pixels + static_cast<int>(s)) * pixel_stride : 0;
  }
  const InceptionSlice<Tile> slice(extent * extent * g.src_channels, shared);
  const Box box{{1, p.rows, p.row_pixels}};
  const MaskedPixelMap pixels{{p.image,
                               p.image,
                               p.row,
                               tile.first,
                               tile.count,
                               {0, -(extent / 2), -(extent / 2)},
                               {1, 1, 1},
                               {p.rows, p.row_pixels, pixel_stride},
                               image_stride},
                              {1, extent, extent},
                              {1, 1, 1},
                              box};
  using TapMap = TapTableKMap<NHWC, true, Tile::BLOCK_K>;
  const TapMap by_tap{NHWC ? g.channels : g.taps, slice.k0, slice.gemm_k, NHWC ? 1 : size, taps};
  GemmLoader<InceptionSource<Tile, NHWC>, Tile::NUM_THREADS, VEC_X, GemmCheck::kMask,
             MaskedPixelMap, TapMap, typename Tile::Threads>
      source(static_cast<const scalar_t*>(g.src) + tile.image0 * image_stride, pixels, by_tap, box,
             NHWC ? 0 : Tile::STAGE_B, slice.tables);
  inception_multiply<Tile, NHWC, VEC_W>(p, g, tile, slice, source, shared);
}

// Dynamic shared memory of either: the offsets of the taps on top.
template <class Tile>
constexpr int inception_shared_bytes() {
  return Tile::SHARED_BYTES + 4 * (kMaskTaps + 1);
}

}  // namespace fastconv::cuda
