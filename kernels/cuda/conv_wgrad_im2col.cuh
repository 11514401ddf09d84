// dw[k,c,t,r,s] = sum over n,o,p,q of dy[n, k, o, p, q] * x[n, c, o*st-pd+t*dl, ...], as one matrix
// product per group over the transposed implicit column matrix:
//   dw [K/g, gemm_n] = dy^T [K/g, N*O*P*Q] * cols [N*O*P*Q, gemm_n]
// with gemm_n = (t, r, s, c) in NHWC and (c, t, r, s) in NCHW, the order of dw itself. gemm_k, the
// pixels, is contiguous in NCHW's operands and the slow axis of NHWC's: both lie in shared memory
// as they come.
//
// Threads: one block per tile of dw, per group and per split. gemm_k is cut in SPLIT_K ranges where
// the tiles alone are too few for the GPU; each range's sum goes to the workspace [SPLIT_K, K,
// gemm_n] in fp32 and a second kernel adds them in ascending order, so that the result depends on
// nothing but the problem and SPLIT_K. Any stride, padding, dilation and groups; fp32 (FFMA;
// tensor cores by TF32, or by three TF32 products), bf16, fp16; accumulation in fp32. FLOPs: 2 N K
// O P Q C/g T R S. Bytes from L2: as fprop; the workspace is written and read once. Speed: not
// measured on a GPU. Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014,
// section 3.
#pragma once
#include "detail/gemm.cuh"
#include "detail/gemm_conv_maps.cuh"

namespace fastconv::cuda {

struct ConvWgradParams {
  const void *x, *dy;
  void* out;                      // dw, or the partial sums when splits > 1
  int64_t pixels;                 // N O P Q
  int channels, filters, groups;  // channels and filters per group
  int in[3], filter[3], out_extent[3], stride[3], padding[3], dilation[3];
  int splits;
  FastDivmod m_tiles, n_tiles, split_count;  // of the block's index
  int64_t split_tiles;                       // tiles of BLOCK_K to a split
  bool vec4;                                 // see GemmStore
  FastDivmod image, plane, row;              // by O P Q, P Q, Q
  FastDivmod inner, tap_plane, tap_row;      // by C/g (NHWC) or T R S (NCHW), by R S, by S
};

// grid.x: groups x splits x gemm_m tiles x gemm_n tiles, the last fastest: blocks that run side by
// side read the same pixels. VEC_DY, VEC_X: elements per copy.
template <class Tile, bool NHWC, int VEC_DY, int VEC_X>
__global__ void __launch_bounds__(Tile::NUM_THREADS, Tile::MIN_BLOCKS)
    conv_wgrad_im2col_kernel(const ConvWgradParams p) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int BLOCK_K = Tile::BLOCK_K, THREADS = Tile::NUM_THREADS;
  FC_DYN_SHARED(unsigned char, shared);
  uint32_t m_tile, n_tile, split_index;
  uint32_t index = p.n_tiles.divmod(blockIdx.x, n_tile);
  index = p.m_tiles.divmod(index, m_tile);
  const int group = static_cast<int>(p.split_count.divmod(index, split_index));
  const int m0 = static_cast<int>(m_tile) * Tile::BLOCK_M;
  const int n0 = static_cast<int>(n_tile) * Tile::BLOCK_N;
  const int split = static_cast<int>(split_index);

  const int64_t start = split * p.split_tiles * BLOCK_K;
  int64_t left = p.pixels - start;
  left = left < 0 ? 0 : left < p.split_tiles * BLOCK_K ? left : p.split_tiles * BLOCK_K;
  const int count = static_cast<int>(left);
  const int k_tiles = (count + BLOCK_K - 1) / BLOCK_K;
  const int in_size = p.in[0] * p.in[1] * p.in[2];
  const int out_size = p.out_extent[0] * p.out_extent[1] * p.out_extent[2];
  const int filter_size = p.filter[0] * p.filter[1] * p.filter[2];
  const int64_t image0 = start / out_size;
  const int first = static_cast<int>(start - image0 * out_size);
  const int x_all = p.channels * p.groups, y_all = p.filters * p.groups;

  // dy: [gemm_k = pixels, gemm_m = filters].
  const scalar_t* dy = static_cast<const scalar_t*>(p.dy);
  const int filter0 = group * p.filters + m0;
  const auto dy_pixels = [&] {
    if constexpr (NHWC) {
      dy += start * y_all + filter0;
      return StrideKMap<BLOCK_K>{y_all, count};
    } else {
      dy += (image0 * y_all + filter0) * out_size;
      return ImageKMap<BLOCK_K>{p.image, first, count, y_all * out_size};
    }
  }();
  const StrideMap dy_filters{NHWC ? 1 : out_size, p.filters - m0};

  // x: [gemm_k = pixels, gemm_n = taps and channels].
  const int x_pixel_stride = NHWC ? x_all : 1, x_channel_stride = NHWC ? 1 : in_size;
  const int x_image_stride = x_all * in_size;
  const scalar_t* x = static_cast<const scalar_t*>(p.x) + image0 * x_image_stride +
                      static_cast<int64_t>(group) * p.channels * x_channel_stride;
  const int gemm_n = p.channels * filter_size;
  const Raster raster{p.in[1], p.in[2], x_pixel_stride};
  const PixelKMap<BLOCK_K> x_pixels{{p.image,
                                     p.plane,
                                     p.row,
                                     first,
                                     count,
                                     {-p.padding[0], -p.padding[1], -p.padding[2]},
                                     {p.stride[0], p.stride[1], p.stride[2]},
                                     raster,
                                     x_image_stride}};
  const TapChannelMap<NHWC> x_taps{p.inner,   p.tap_plane,
                                   p.tap_row, n0,
                                   gemm_n,    {p.dilation[0], p.dilation[1], p.dilation[2]},
                                   raster,    x_channel_stride};
  const Box box{{p.in[0], p.in[1], p.in[2]}};

  using DyTile = OperandTile<scalar_t, Tile::BLOCK_M, !NHWC>;
  using XTile = OperandTile<scalar_t, Tile::BLOCK_N, !NHWC>;
  using DyLoader = GemmLoader<DyTile, THREADS, VEC_DY, GemmCheck::kSign, StrideMap,
                              std::decay_t<decltype(dy_pixels)>>;
  using XLoader =
      GemmLoader<XTile, THREADS, VEC_X, GemmCheck::kBox, TapChannelMap<NHWC>, PixelKMap<BLOCK_K>>;
  unsigned char* tables = shared + Tile::RING_BYTES;
  DyLoader load_dy(dy, dy_filters, dy_pixels, box, 0, tables);
  XLoader load_x(x, x_taps, x_pixels, box, Tile::STAGE_B, tables + DyLoader::TABLE_BYTES);
  __syncthreads();
  load_dy.start();
  load_x.start();
  GemmWarp<Tile, !NHWC, !NHWC> warp;
  gemm_mainloop<Tile>(warp, load_dy, load_x, k_tiles, shared);

  const StrideMap rows{gemm_n, p.filters - m0}, columns{1, gemm_n - n0};
  const int64_t out = static_cast<int64_t>(filter0) * gemm_n + n0;
  if (p.splits > 1) {
    float* partial =
        static_cast<float*>(p.out) + static_cast<int64_t>(split) * y_all * gemm_n + out;
    gemm_epilogue<Tile>(
        warp, GemmStore<float, StrideMap, StrideMap>{partial, rows, columns, p.vec4, nullptr},
        shared);
  } else {
    scalar_t* dw = static_cast<scalar_t*>(p.out) + out;
    gemm_epilogue<Tile>(
        warp, GemmStore<scalar_t, StrideMap, StrideMap>{dw, rows, columns, p.vec4, nullptr},
        shared);
  }
}

constexpr int kWgradReduceThreads = 256;

// dw[i] = sum over the splits, in ascending order, of partial[split][i]: [splits, weights] ->
// [weights]. A thread per element; neighbours read neighbours. Bytes: 4 splits + sizeof(scalar_t)
// per element, which bound it where elements are many; else it is how many loads a thread has under
// way.
template <class scalar_t>
__global__ void __launch_bounds__(kWgradReduceThreads)
    conv_wgrad_im2col_reduce_kernel(const float* __restrict__ partial, scalar_t* __restrict__ dw,
                                    int64_t weights, int splits) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWgradReduceThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWgradReduceThreads + threadIdx.x;
       i < weights; i += step) {
    float sum = 0.0f;
#pragma unroll 16
    for (int split = 0; split < splits; ++split) sum += partial[split * weights + i];
    dw[i] = from_acc<scalar_t>(sum);
  }
}

}  // namespace fastconv::cuda
