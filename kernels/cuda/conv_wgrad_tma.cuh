// dw[k,c,t,r,s] = sum over n,o,p,q of dy[n, k, o, p, q] * x[n, c, o*st-pd+t*dl, ...], for NHWC on
// the warpgroup tensor cores of sm_90a, as the matrix product
//   dw [K, taps * C] = dy^T [K, N*O*P*Q] * cols [N*O*P*Q, taps * C]
// gemm_k, the pixels, is the slow axis of both operands, and 16-bit types are multiplied as they
// lie (MN-major): a stage is 64 pixels of BLOCK_M filters and BLOCK_N columns, 64 at a time. TMA's
// tile mode brings dy, its im2col mode the columns: 64 channels of one tap, padding and images'
// borders included. Such a unit of 64 columns belongs to one tap, so that a block's may be of
// several taps; C is rounded up to 64.
//
// Threads: persistent blocks of three warpgroups, one block to an SM. One thread of the first
// issues all copies; the other two multiply, one below the other or, where BLOCK_M is 64, side by
// side. An item of work is a tile of dw and one of SPLIT_K ranges of pixels. Items that run
// together are of the same pixels, so that these come from L2. Where there are several ranges,
// each one's sum goes to the workspace [SPLIT_K, K, taps * C] in fp32, and a second kernel adds
// them in ascending order: the result depends on nothing but the problem and SPLIT_K.
//
// bf16, fp16; accumulation in fp32, gemm_k ascending. FLOPs: 2 N K O P Q C T R S, K rounded up to
// BLOCK_M and taps * C to BLOCK_N. From L2: 1/BLOCK_M + 1/BLOCK_N elements per multiply-add;
// DRAM: x and dy once where the L2 holds what neighbouring blocks share; the workspace is written
// and read once. Deterministic. Speed: not measured on a GPU. Sources: PTX ISA, "Tensors" and
// "Asynchronous warpgroup level matrix instructions"; Chetlur et al., "cuDNN: Efficient Primitives
// for Deep Learning", 2014, section 3.
#pragma once
#include "detail/fast_divmod.cuh"
#include "detail/scalar.cuh"
#include "detail/tma.cuh"
#include "detail/wgmma_mainloop.cuh"

namespace fastconv::cuda {

// Axes are D, H, W as in ConvProblem. x is read through an im2col map of 64 pixels by 64 channels,
// dy [1, pixels, K] through a tile map of the same box.
struct ConvWgradTmaParams {
  TensorMap x, dy;
  void* out;        // dw [filters, pitch], or the partial sums when splits > 1
  int64_t weights;  // filters * pitch
  int64_t pitch;    // taps * channels
  int filters, channels;
  int splits;
  bool volume;  // x's map has the axis D

  // Pixel o, p, q of dy starts at o * stride + first in x, less the taps' offsets.
  int stride[3], first[3], dilation[3];
  FastDivmod image, plane, row;           // O P Q, P Q, Q
  FastDivmod chunks, tap_plane, tap_row;  // units to a tap, R S, S

  int units;                 // of 64 columns: taps * chunks
  int k_tiles, split_tiles;  // of 64 pixels: all, and those of a range
  int items;                 // splits x gemm_m tiles x gemm_n tiles, the last fastest
  FastDivmod m_tiles, n_tiles;
};

template <class scalar, int block_m, int block_n, int stages>
struct ConvWgradTmaTile : WgmmaTile<scalar, block_m, block_n, stages> {
  using Base = WgmmaTile<scalar, block_m, block_n, stages>;
  static constexpr int PIXELS = 64, UNITS = block_n / 64;
  static constexpr int BOX_BYTES = PIXELS * 128;  // of 64 filters or one unit
  // Fragments are stored as they lie: a row's four lanes have 32 bytes of a partial sum.
  static constexpr int SHARED_BYTES = Base::ALIGNMENT + Base::RING_BYTES + 2 * stages * 8;
  static_assert(sizeof(scalar) == 2 && Base::STAGE_BYTES == (block_m + block_n) / 64 * BOX_BYTES);
};

// First filter, unit and k_tile of an item.
struct ConvWgradTmaItem {
  int m, unit, k_tile, k_tiles, split;
};
template <class Tile>
__device__ __forceinline__ ConvWgradTmaItem conv_wgrad_tma_item(const ConvWgradTmaParams& p,
                                                                int index) {
  uint32_t m_tile, n_tile;
  const uint32_t rest = p.n_tiles.divmod(index, n_tile);
  const int split = static_cast<int>(p.m_tiles.divmod(rest, m_tile));
  const int first = split * p.split_tiles, left = p.k_tiles - first;
  return {static_cast<int>(m_tile) * Tile::BLOCK_M, static_cast<int>(n_tile) * Tile::UNITS, first,
          left < p.split_tiles ? left : p.split_tiles, split};
}

template <class Tile>
__device__ __forceinline__ void conv_wgrad_tma_copy(const ConvWgradTmaParams& p,
                                                    const WgmmaRing& ring,
                                                    RingPosition<Tile::NUM_STAGES>& at,
                                                    const ConvWgradTmaItem& item) {
  int channel[Tile::UNITS], offset[Tile::UNITS];  // w, h, d in a byte each
#pragma unroll
  for (int i = 0; i < Tile::UNITS; ++i) {
    uint32_t chunk, rest, s;
    const uint32_t t = p.tap_plane.divmod(p.chunks.divmod(item.unit + i, chunk), rest);
    const uint32_t r = p.tap_row.divmod(rest, s);
    offset[i] =
        static_cast<int>(s * p.dilation[2] | r * p.dilation[1] << 8 | t * p.dilation[0] << 16);
    channel[i] = static_cast<int>(chunk) * 64;
    // Behind the last unit: beyond all channels, where TMA reads nothing and writes zeros.
    if (item.unit + i >= p.units) offset[i] = 0, channel[i] = p.channels;
  }
  for (int k_tile = item.k_tile; k_tile < item.k_tile + item.k_tiles; ++k_tile) {
    const int pixel = k_tile * Tile::PIXELS;
    uint32_t rest;
    const int n = p.image.divmod(pixel, rest);
    const uint32_t o = p.plane.divmod(rest, rest);
    const uint32_t ph = p.row.divmod(rest, rest);
    const int d0 = static_cast<int>(o) * p.stride[0] + p.first[0];
    const int h0 = static_cast<int>(ph) * p.stride[1] + p.first[1];
    const int w0 = static_cast<int>(rest) * p.stride[2] + p.first[2];
    mbarrier_wait(ring.empty + at.slot, at.parity ^ 1);
    uint64_t* const barrier = ring.full + at.slot;
    mbarrier_arrive_expect(barrier, Tile::STAGE_BYTES);
    unsigned char* const stage = ring.stages + at.slot * Tile::STAGE_BYTES;
#pragma unroll
    for (int i = 0; i < Tile::BLOCK_M / 64; ++i)
      tma_load_tile(stage + i * Tile::BOX_BYTES, &p.dy, barrier, item.m + i * 64, pixel, 0);
#pragma unroll
    for (int i = 0; i < Tile::UNITS; ++i) {
      unsigned char* const to = stage + Tile::A_BYTES + i * Tile::BOX_BYTES;
      const int w = offset[i] & 255, h = offset[i] >> 8 & 255, d = offset[i] >> 16;
      if (p.volume)
        tma_load_im2col(to, &p.x, barrier, channel[i], w0, h0, d0, n, w, h, d);
      else
        tma_load_im2col(to, &p.x, barrier, channel[i], w0, h0, n, w, h);
    }
    at.advance();
  }
}

// A warp's 16 rows of BOX units: acc as wgmma.cuh has it.
template <int COUNT, class out_t>
__device__ __forceinline__ void conv_wgrad_tma_store(const ConvWgradTmaParams& p, out_t* out,
                                                     const float (&acc)[COUNT], int m, int unit) {
  struct alignas(2 * sizeof(out_t)) Pair {
    out_t v[2];
  };
  const int lane = threadIdx.x % 32, row = m + lane / 4;
#pragma unroll
  for (int i = 0; i < COUNT / 32; ++i) {
    uint32_t chunk;
    const int64_t tap = p.chunks.divmod(unit + i, chunk);
    const int channel = static_cast<int>(chunk) * 64;
    // Channels come in eights, and so do a unit's that exist.
    const int eights = unit + i < p.units ? (p.channels - channel) / 8 : 0;
    out_t* const to = out + row * p.pitch + tap * p.channels + channel + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (row + 8 * half < p.filters) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (j < eights) {
            const float* const v = acc + 32 * i + 4 * j + 2 * half;
            *reinterpret_cast<Pair*>(to + 8 * half * p.pitch +
                                     8 * j) = {{from_acc<out_t>(v[0]), from_acc<out_t>(v[1])}};
          }
      }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_wgrad_tma_kernel(const __grid_constant__ ConvWgradTmaParams p) {
#if defined(FC_SM90A)
  using scalar_t = typename Tile::scalar_t;
  FC_DYN_SHARED(unsigned char, shared);
  const WgmmaRing ring = wgmma_ring<Tile, 0>(shared);
  RingPosition<Tile::NUM_STAGES> at;
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    give_registers<Tile::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch_map(&p.x);
      tma_prefetch_map(&p.dy);
      for (int index = blockIdx.x; index < p.items; index += gridDim.x)
        conv_wgrad_tma_copy<Tile>(p, ring, at, conv_wgrad_tma_item<Tile>(p, index));
    }
  } else {
    take_registers<Tile::CONSUMER_REGISTERS>();
    constexpr int PRODUCTS = Tile::PRODUCTS, N = Tile::CONSUMER_N;
    // In 64 filters and units of the tile.
    const int row = (warpgroup - 1) % Tile::CONSUMER_ROWS * PRODUCTS;
    const int column = (warpgroup - 1) / Tile::CONSUMER_ROWS * (N / 64);
    for (int index = blockIdx.x; index < p.items; index += gridDim.x) {
      const ConvWgradTmaItem item = conv_wgrad_tma_item<Tile>(p, index);
      float acc[PRODUCTS][N / 2];
      wgmma_mainloop<Tile>(
          acc, ring.stages, ring.full, WgmmaRelease{ring.empty}, at, item.k_tiles,
          [&](const unsigned char* stage, bool accumulate) {
            constexpr int DEPTH = 16;  // pixels
            const uint64_t a = wgmma_operand(stage + row * Tile::BOX_BYTES, Tile::BOX_BYTES);
            const uint64_t b =
                wgmma_operand(stage + Tile::A_BYTES + column * Tile::BOX_BYTES, Tile::BOX_BYTES);
#pragma unroll
            for (int k = 0; k < Tile::PIXELS; k += DEPTH)
#pragma unroll
              for (int i = 0; i < PRODUCTS; ++i)
                wgmma<scalar_t, N, true, true>(acc[i],
                                               wgmma_moved(a, i * Tile::BOX_BYTES + k * 128),
                                               wgmma_moved(b, k * 128), accumulate || k != 0);
          });
      const int warp = threadIdx.x / 32 % 4;
#pragma unroll
      for (int i = 0; i < PRODUCTS; ++i) {
        const int m = item.m + (row + i) * 64 + warp * 16, unit = item.unit + column;
        if (p.splits > 1)
          conv_wgrad_tma_store(p, static_cast<float*>(p.out) + item.split * p.weights, acc[i], m,
                               unit);
        else
          conv_wgrad_tma_store(p, static_cast<scalar_t*>(p.out), acc[i], m, unit);
      }
    }
  }
#else
  static_cast<void>(p);  // compiled for another architecture too, never launched there
#endif
}

}  // namespace fastconv::cuda
