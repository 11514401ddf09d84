// dx[n,c,d,h,w] = sum over k and the taps that reach it of dy[n, k, o, p, q] * w[k, c, t, r, s],
// h = p * stride - padding + r * dilation, for strides above 1, NHWC, on the warpgroup tensor cores
// of sm_90a. The pixels of dx fall into prod(stride) classes by h mod stride along each axis: a
// class sees only the taps with (h + padding - r * dilation) divisible by stride, and is over these
// a convolution of stride 1 that TMA's im2col mode gathers from dy. So nothing is multiplied by
// inserted zeros: a 3x3 filter of stride 2 gives classes of 4, 2, 2 and 1 taps.
//
// Along an axis, for the class with first pixel h0, `taps` of the filter, the last of them `tap`:
//
//   taps     r = tap - j * period, with period = stride / gcd(stride, dilation)
//   reads    p = lower + h' + shift + j * step, with step = period * dilation / stride
//   writes   h = h0 + stride * h'
//
// `lower` is the least place that any class starts at: a map's box starts there, and what a class
// starts later is part of the taps' offsets, so that classes of as many pixels share a map. Along
// an axis a class has the most pixels of all classes or one less: eight maps do for all.
//
// Threads, ring and operands: as conv_gather_tma.cuh. All classes in one launch, those with the
// most taps of an axis first; a class without taps stores zeros. bf16, fp16, and fp32 by one or
// three products of TF32, for which the filter is turned beforehand (conv_filter_tf32.cuh);
// accumulation in fp32, gemm_k ascending. FLOPs: 2 N K O P Q C T R S, K rounded up to 64 to a tap.
// From L2: 1/BLOCK_M + 1/BLOCK_N elements per multiply-add; DRAM: dy once where the L2 holds it,
// else once per class; dx once. Workspace: none, or the turned filter. Deterministic. Speed: not
// measured on a GPU. Sources: PTX ISA, "Tensors"; Dumoulin and Visin, "A guide to convolution
// arithmetic for deep learning", 2016, section 4.6.
#pragma once
#include "conv_gather_tma_tf32x3.cuh"
#include "detail/wgmma_mainloop.cuh"

namespace fastconv::cuda {

constexpr int kTmaMostStride = 8;

struct TmaClassAxis {
  int first, taps, tap, shift;
  int less;  // pixels less than the class with the most
};

struct ConvDgradStridedTmaParams {
  TensorMap dy[8], w;    // dy: bit 0 (W), 1 (H), 2 (D) of the index: `less` of the axis
  void* dx;              // aligned to 16 bytes
  int images, channels;  // of dx: gemm_n
  bool volume;           // dy's maps have the axis D

  int extent[3], stride[3];  // of dx
  int lower[3], filter[3], period[3], step[3];
  int most_pixels[3];  // along an axis, of all classes
  TmaClassAxis axis[3][kTmaMostStride];
  FastDivmod class_count[3];  // stride, or fewer where the image is smaller
  // By a class's pixels per image, plane and row, for each `less` of H and W or of W.
  FastDivmod image[8], plane[4], row[2];
  int items;  // classes x rows of tiles of the largest class x columns of tiles, the last fastest
  FastDivmod class_tiles, columns;
  int chunks;  // of gemm_k, to a tap
};

// An item of work: a class, and the first pixel and channel of a tile of it.
struct ConvDgradStridedTmaItem {
  TmaClassAxis axis[3];
  int variant;  // of the maps
  int m, n;
  int pixels;  // gemm_m of the class
  int taps;
};

template <class Tile>
__device__ __forceinline__ ConvDgradStridedTmaItem
conv_dgrad_strided_tma_item(const ConvDgradStridedTmaParams& p, int index) {
  ConvDgradStridedTmaItem item;
  uint32_t tile, column, at[3];
  uint32_t rest = p.class_tiles.divmod(index, tile);
  item.m = static_cast<int>(p.columns.divmod(tile, column)) * Tile::BLOCK_M;
  item.n = static_cast<int>(column) * Tile::BLOCK_N;
  rest = p.class_count[2].divmod(rest, at[2]);
  at[0] = p.class_count[1].divmod(rest, at[1]);
  item.variant = 0;
  item.taps = 1;
  item.pixels = p.images;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    item.axis[i] = p.axis[i][at[i]];
    item.variant = 2 * item.variant + item.axis[i].less;
    item.taps *= item.axis[i].taps;
    item.pixels *= p.most_pixels[i] - item.axis[i].less;
  }
  return item;
}

// Image and place along each axis of a class's pixel.
__device__ __forceinline__ int conv_dgrad_strided_tma_pixel(const ConvDgradStridedTmaParams& p,
                                                            int variant, int pixel,
                                                            int (&place)[3]) {
  uint32_t rest;
  const int n = static_cast<int>(p.image[variant].divmod(pixel, rest));
  place[0] = static_cast<int>(p.plane[variant & 3].divmod(rest, rest));
  place[1] = static_cast<int>(p.row[variant & 1].divmod(rest, rest));
  place[2] = static_cast<int>(rest);
  return n;
}

template <class Tile>
__device__ __forceinline__ void conv_dgrad_strided_tma_copy(const ConvDgradStridedTmaParams& p,
                                                            const WgmmaRing& ring,
                                                            RingPosition<Tile::NUM_STAGES>& at,
                                                            const ConvDgradStridedTmaItem& item) {
  const TmaClassAxis &ad = item.axis[0], &ah = item.axis[1], &aw = item.axis[2];
  const TensorMap* const dy = p.dy + item.variant;
  int place[3];
  const int n = conv_dgrad_strided_tma_pixel(p, item.variant, item.m, place);
  const int d0 = p.lower[0] + place[0], h0 = p.lower[1] + place[1], w0 = p.lower[2] + place[2];
  for (int t = 0; t < ad.taps; ++t)
    for (int r = 0; r < ah.taps; ++r)
      for (int s = 0; s < aw.taps; ++s) {
        const int tap =
            ((ad.tap - t * p.period[0]) * p.filter[1] + ah.tap - r * p.period[1]) * p.filter[2] +
            aw.tap - s * p.period[2];
        const int offset_d = ad.shift + t * p.step[0], offset_h = ah.shift + r * p.step[1];
        const int offset_w = aw.shift + s * p.step[2];
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          mbarrier_wait(ring.empty + at.slot, at.parity ^ 1);
          uint64_t* const barrier = ring.full + at.slot;
          mbarrier_arrive_expect(barrier, Tile::STAGE_BYTES);
          unsigned char* const a = ring.stages + at.slot * Tile::STAGE_BYTES;
          const int filter = chunk * Tile::BLOCK_K;
          if (p.volume)
            tma_load_im2col(a, dy, barrier, filter, w0, h0, d0, n, offset_w, offset_h, offset_d);
          else
            tma_load_im2col(a, dy, barrier, filter, w0, h0, n, offset_w, offset_h);
          if constexpr (sizeof(typename Tile::scalar_t) == 4) {
#pragma unroll
            for (int i = 0; i < Tile::W_PARTS; ++i)
              tma_load_tile(a + Tile::A_BYTES + i * Tile::BLOCK_N * 128, &p.w, barrier, filter,
                            p.filter[0] * p.filter[1] * p.filter[2] - 1 - tap,
                            item.n + i * p.channels);
          } else {
#pragma unroll
            for (int part = 0; part < Tile::BLOCK_N; part += 64)
              tma_load_tile(a + Tile::A_BYTES + part * 128, &p.w, barrier, item.n + part, tap,
                            filter);
          }
          at.advance();
        }
      }
}

// A class's rows of dx.
template <class Tile>
struct ConvDgradStridedTmaStore {
  using scalar_t = typename Tile::scalar_t;
  const ConvDgradStridedTmaParams& p;
  const ConvDgradStridedTmaItem& item;

  __device__ __forceinline__ void load_bias(int, float (&)[8]) const {}
  __device__ __forceinline__ void store(int m, int n, const float (&)[8], float (&v)[8]) const {
    if (m >= item.pixels || n >= p.channels) return;
    int place[3];
    int64_t pixel = conv_dgrad_strided_tma_pixel(p, item.variant, m, place);
#pragma unroll
    for (int i = 0; i < 3; ++i)
      pixel = pixel * p.extent[i] + item.axis[i].first + place[i] * p.stride[i];
    // Channels come in eights.
    store_aligned(static_cast<scalar_t*>(p.dx) + pixel * p.channels + n, v);
  }
  // The whole tile, by all threads that multiply.
  __device__ __forceinline__ void zeros(int m, int n, int thread) const {
    constexpr int COLUMNS = Tile::BLOCK_N / 8, ROWS = 32 * Tile::CONSUMER_WARPS / COLUMNS;
    float v[8] = {};
#pragma unroll 1
    for (int row = thread / COLUMNS; row < Tile::BLOCK_M; row += ROWS)
      store(m + row, n + thread % COLUMNS * 8, v, v);
  }
};

// One body for all types; the kernels below give it their names.
template <class Tile, class Mainloop>
__device__ __forceinline__ void conv_dgrad_strided_tma(const ConvDgradStridedTmaParams& p) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, shared);
  const WgmmaRing ring = wgmma_ring<Tile, Tile::CONSUMER_WARPS * Tile::TURN_BYTES>(shared);
  RingPosition<Tile::NUM_STAGES> at;
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32;
  if (warpgroup == 0) {
    give_registers<Tile::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch_map(p.dy);
      tma_prefetch_map(&p.w);
      for (int index = blockIdx.x; index < p.items; index += gridDim.x) {
        const ConvDgradStridedTmaItem item = conv_dgrad_strided_tma_item<Tile>(p, index);
        if (item.m < item.pixels) conv_dgrad_strided_tma_copy<Tile>(p, ring, at, item);
      }
    }
  } else {
    take_registers<Tile::CONSUMER_REGISTERS>();
    constexpr int PRODUCTS = Tile::PRODUCTS;
    const int consumer = warpgroup - 1;
    float* const turn = reinterpret_cast<float*>(ring.behind + (warp - 4) * Tile::TURN_BYTES);
    for (int index = blockIdx.x; index < p.items; index += gridDim.x) {
      const ConvDgradStridedTmaItem item = conv_dgrad_strided_tma_item<Tile>(p, index);
      if (item.m >= item.pixels) continue;
      const ConvDgradStridedTmaStore<Tile> store{p, item};
      if (item.taps == 0) {
        store.zeros(item.m, item.n, threadIdx.x - 128);
        continue;
      }
      float acc[PRODUCTS][Tile::BLOCK_N / 2];
      Mainloop::run(acc, ring.stages, ring.full, WgmmaRelease{ring.empty}, at, consumer,
                    item.taps * p.chunks);
#pragma unroll
      for (int i = 0; i < PRODUCTS; ++i)
        store_accumulators<Tile::BLOCK_N>(
            acc[i], turn, store, item.m + (consumer * PRODUCTS + i) * 64 + warp % 4 * 16, item.n);
    }
  }
#else
  static_cast<void>(p);  // compiled for another architecture too, never launched there
#endif
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_strided_tma_kernel(const __grid_constant__ ConvDgradStridedTmaParams p) {
  conv_dgrad_strided_tma<Tile, ConvTmaMainloop<Tile, sizeof(typename Tile::scalar_t) == 2>>(p);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_strided_tma_tf32x3_kernel(const __grid_constant__ ConvDgradStridedTmaParams p) {
  conv_dgrad_strided_tma<Tile, ConvTmaTf32x3Mainloop<Tile>>(p);
}

}  // namespace fastconv::cuda
