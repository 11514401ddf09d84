// y[n,k,p,q] = b[k] + sum over c,r,s of x[n, c, p+r-ph, q+s-pw] * w[k, c, r, s], stride 1, for NHWC
// and few channels, on the warpgroup tensor cores of sm_90a. A tile's pixels come to shared memory
// once, with their halo (one TMA box; what is outside of the image is zero, which is the padding),
// and every tap reads them there; a block's weights stay there for its life.
//
// Product: A [64, 16] pixels by channels from registers, B [BLOCK_N, 16] weights from shared
// memory. A tap's pixels are rows of 128 bytes at any multiple of 128 bytes, in steps that differ
// between rows of the image, which no descriptor of shared memory says; ldmatrix takes eight rows
// from anywhere, and in the 128B swizzle any eight neighbours touch every bank once. A warp's unit
// is 8 pixels by 2 P rows (P: PRODUCTS), its product i rows i and P + i, so that tap r of product i
// reads what tap 0 of product i + r reads: P + R - 1 fragments serve the P R products of one s and
// 16 channels.
//
// Threads: persistent blocks of three warpgroups. One thread of the first issues all copies: the
// weights, then boxes of 64 channels. The other two have every second tile, and room for one box
// each: they multiply in turn, box by box, so that one's next box comes, and its sums are stored,
// while the other has the tensor cores. A warp gives a box back when its last fragments are loaded,
// and loads the fragments of one step while the products of the one before run.
//
// Weights come to shared memory once in a block's life; clusters of two or four blocks have the
// same ones, and each block brings a part of them, for all, by multicast. Statistics of y where
// `moments` asks, per tile: the warpgroup that stored it reads it back (block_moments.cuh).
//
// bf16, fp16; accumulation in fp32, in the order c / 64, 16 neighbours of (s, c % 64), r, one of
// these: of C % 16 = 8 a step goes across taps. For R = 3, per tile of 256 pixels (P = 4, BLOCK_N =
// 64) and 64 channels: 2 * 256 * 64 * 576 = 18.9 MFLOP, 4608 cycles of an SM's tensor cores. Shared
// memory, at 128 bytes a cycle: B 2 KB for each of 144 products, 2304 cycles; A 6 fragments of 2 KB
// for 12 products, 1152; the box in, 324: 82% of it. Were A read from shared memory by each
// product, it would be 107%. From L2: a box of 18 x 18 pixels, 41.5 KB, 0.0022 bytes per FLOP,
// where im2col's copies take 1/BLOCK_M + 1/BLOCK_N, 0.0117 at the best, 0.0078 of two blocks
// together; with the weights, of 32 images, at most 0.0033 in layers of ResNet-50 and VGG-16,
// borders not counted as work. BLOCK_N = 128, P = 2: 128 pixels, 0.0012 bytes per FLOP, 71% of
// shared memory's cycles. Workspace: none. Deterministic. Speed: not measured on a GPU. Sources:
// PTX ISA, "Tensors" and "Asynchronous warpgroup level matrix instructions".
//
// dgrad is the same over dy, taps backwards, with w's filters as gemm_k and its channels as gemm_n,
// which wgmma reads as they lie (MN-major).
#pragma once
#include "detail/conv_halo_params.cuh"
#include "detail/mma.cuh"
#include "detail/named_barrier.cuh"
#include "detail/tma_multicast.cuh"
#include "detail/wgmma_tile.cuh"

namespace fastconv::cuda {

// A block's share: of dst's channels those from `n` on, the same for all of a cluster; of the tiles
// first, first + next, ...
struct HaloShare {
  int n, first, next, tiles;
  __device__ __forceinline__ HaloShare(const ConvHaloParams& p, int block_n) {
    const int cluster = static_cast<int>(blockIdx.x) >> p.cluster_log;
    const int clusters = static_cast<int>(gridDim.x) >> p.cluster_log;
    n = cluster % p.parts * block_n;
    first = (cluster / p.parts << p.cluster_log) + static_cast<int>(cluster_rank());
    next = clusters / p.parts << p.cluster_log;
    tiles = first < p.tiles ? (p.tiles - 1 - first) / next + 1 : 0;
  }
};

// The first image, row and column of a tile.
struct HaloPlace {
  int n, h, w;
};
__device__ __forceinline__ HaloPlace halo_place(const ConvHaloParams& p, int tile) {
  uint32_t row, column;
  const uint32_t rest = p.tiles_w.divmod(static_cast<uint32_t>(tile), column);
  const uint32_t image = p.tiles_h.divmod(rest, row);
  return {static_cast<int>(image) * p.tile_n, static_cast<int>(row) * p.tile_h,
          static_cast<int>(column) * p.tile_w};
}

// Barriers of a block; two are of a consumer each. `turn`: the other one has issued the products of
// one more box.
struct HaloBarriers {
  uint64_t full[2], empty[2], turn[2], weights;
};

// All copies of a block.
template <class Tile, bool B_MN>
struct HaloProducer {
  const ConvHaloParams& p;
  unsigned char* data;
  HaloBarriers& barriers;

  // The blocks of a cluster take turns, each bringing a copy to all.
  __device__ __forceinline__ void load_weights(int n) const {
    mbarrier_arrive_expect(&barriers.weights, p.w_bytes);
    unsigned char* to = data;
    const unsigned ranks = 1u << p.cluster_log;
    unsigned turn = cluster_rank();
    const auto load = [&](int c0, int c1, int c2) {
      if (ranks == 1)
        tma_load_tile(to, &p.w, &barriers.weights, c0, c1, c2);
      else if (turn % ranks == 0)
        tma_multicast_tile(to, &p.w, &barriers.weights, (1u << ranks) - 1, c0, c1, c2);
      to += p.w_chunk_bytes;
      ++turn;
    };
    for (int part = 0; part < (B_MN ? Tile::BLOCK_N : Tile::CHUNK); part += Tile::CHUNK)
      for (int tap = 0; tap < p.w_taps; ++tap)
        for (int chunk = 0; chunk < p.w_chunks; ++chunk) {
          if constexpr (B_MN)
            load(n + part, p.w_taps - 1 - tap, chunk * Tile::CHUNK);
          else
            load(chunk * Tile::CHUNK, tap, n);
        }
  }

  // Both consumers' boxes of one chunk at a time, in the order in which they multiply.
  __device__ __forceinline__ void load_pixels(const HaloShare& share) const {
    unsigned parity = 1;
    for (int i = 0; i < share.tiles; i += 2) {
      for (int chunk = 0; chunk < p.chunks; ++chunk, parity ^= 1) {
        for (int consumer = 0; consumer < 2 && i + consumer < share.tiles; ++consumer) {
          const HaloPlace place = halo_place(p, share.first + (i + consumer) * share.next);
          uint64_t* const full = &barriers.full[consumer];
          mbarrier_wait(&barriers.empty[consumer], parity);
          mbarrier_arrive_expect(full, p.box_bytes);
          tma_load_tile(data + p.w_bytes + consumer * p.stage_bytes, &p.src, full,
                        chunk * Tile::CHUNK, place.w + p.first_w, place.h + p.first_h, place.n);
        }
      }
    }
  }
};

// The weights of gemm_k from `k` on, a multiple of STEP.
template <class Tile, bool B_MN>
__device__ __forceinline__ uint64_t halo_weights(uint64_t weights, unsigned k) {
  return wgmma_moved(
      weights, B_MN ? k * 128 : k / Tile::CHUNK * (Tile::BLOCK_N * 128) + k % Tile::CHUNK * 2);
}

// Where eight values of gemm_k of a chunk's row of taps lie, counted in eights: under tap s, in
// that pixel's 16 bytes `eighth`. A step is two of them; where a tap has an odd number, a step has
// the end of one tap and the beginning of the next, and behind the last tap what a pixel has behind
// its channels: zeros. Worked out anew each time: registers are scarce.
struct HaloEight {
  int s, eighth;
  __device__ __forceinline__ HaloEight(int number, int per_tap, int reciprocal, int last_s)
      : s(min(number * reciprocal >> HALO_RECIPROCAL_LOG, last_s)), eighth(number - s * per_tap) {}
};

// One step of one box: 16 values of gemm_k of all pixels, under the taps of each row of the filter.
template <class Tile, bool B_MN>
__device__ __forceinline__ void halo_multiply(float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2],
                                              uint32_t (&a)[Tile::PRODUCTS + Tile::FILTER_H - 1][4],
                                              const unsigned char* box, int pixel, int box_w,
                                              int eighth, uint64_t weights, int k, int row_k,
                                              bool accumulate) {
#pragma unroll
  for (int j = 0; j < Tile::PRODUCTS + Tile::FILTER_H - 1; ++j) {
    const int at = pixel + j * box_w;
    ldmatrix_x4(a[j], box + at * 128 + ((eighth ^ (at & 7)) * 16));
  }
#pragma unroll
  for (int i = 0; i < Tile::PRODUCTS; ++i) wgmma_pin(acc[i]);
  wgmma_fence();
#pragma unroll
  for (int r = 0; r < Tile::FILTER_H; ++r) {
    const uint64_t b = halo_weights<Tile, B_MN>(weights, k + r * row_k);
#pragma unroll
    for (int i = 0; i < Tile::PRODUCTS; ++i)
      wgmma_with_registers<typename Tile::scalar_t, Tile::BLOCK_N, B_MN>(acc[i], a[i + r], b,
                                                                         accumulate || r != 0);
  }
  wgmma_commit();
}

// Moments of a tile of y, in its channels from `n` on, that this warpgroup has stored: from L1 and
// L2 where it has just come to lie, while the other warpgroup multiplies. How many pixels of the
// tile exist differs from tile to tile.
template <class Tile>
__device__ __forceinline__ void conv_halo_moments(const ConvHaloParams& p, int n, int tile) {
  using scalar_t = typename Tile::scalar_t;
  const HaloPlace place = halo_place(p, tile);
  if (threadIdx.x < 256)  // what the others have stored
    named_barrier_sync(1, 128);
  else
    named_barrier_sync(2, 128);
  const scalar_t* const y = static_cast<const scalar_t*>(p.result.base) + n;
  CountedMoment<float>* const to = p.moments.to + n * p.moments.tiles + tile;
  const auto at = [&](int c, int i) -> const scalar_t* {
    const int line = i / Tile::UNIT_W >> p.units_w_log;
    const int column = place.w + i - (line << p.units_w_log) * Tile::UNIT_W;
    const int image = line / Tile::UNIT_H >> p.units_h_log;
    const int row = place.h + line - (image << p.units_h_log) * Tile::UNIT_H;
    if (place.n + image >= p.images || row >= p.rows || column >= p.columns) return nullptr;
    return y +
           static_cast<int64_t>(((place.n + image) * p.rows + row) * p.columns + column) *
               p.result.pitch +
           c;
  };
  const auto leave = [&](auto lanes, auto vec) {
    stored_moments<decltype(lanes)::value, decltype(vec)::value, scalar_t>(
        min(Tile::BLOCK_N, p.result.channels - n), Tile::PIXELS,
        static_cast<int>(threadIdx.x) % 128, 128, at,
        [&](int c) { return to + c * p.moments.tiles; });
  };
  // Four warps have BLOCK_N channels.
  if (p.result.vec8)
    leave(std::integral_constant<int, Tile::BLOCK_N / 32>(), std::integral_constant<int, 8>());
  else
    leave(std::integral_constant<int, 8>(), std::integral_constant<int, 1>());
}

// One body for both directions; the kernels below give it their names.
template <class Tile, bool B_MN>
__device__ __forceinline__ void conv_gather_halo(const ConvHaloParams& p) {
#if defined(FC_SM90A)
  using scalar_t = typename Tile::scalar_t;
  constexpr int FRAGMENTS = Tile::PRODUCTS + Tile::FILTER_H - 1;
  FC_DYN_SHARED(unsigned char, shared);
  unsigned char* const data =
      shared +
      (Tile::ALIGNMENT - reinterpret_cast<uintptr_t>(shared) % Tile::ALIGNMENT) % Tile::ALIGNMENT;
  HaloBarriers& barriers =
      *reinterpret_cast<HaloBarriers*>(data + p.w_bytes + p.stage_bytes + p.box_bytes);
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&barriers.full[i], 1);
      mbarrier_init(&barriers.empty[i], 4);  // warps
      mbarrier_init(&barriers.turn[i], 4);
    }
    mbarrier_init(&barriers.weights, 1);
    mbarrier_init_fence();
  }
  if (p.cluster_log > 0)
    cluster_sync();
  else
    __syncthreads();
  const HaloShare share(p, Tile::BLOCK_N);

  if (warpgroup == 0) {
    give_registers<Tile::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch_map(&p.src);
      tma_prefetch_map(&p.w);
      const HaloProducer<Tile, B_MN> producer{p, data, barriers};
      producer.load_weights(share.n);
      producer.load_pixels(share);
    }
    if (p.cluster_log > 0) cluster_sync();
  } else {
    take_registers<Tile::CONSUMER_REGISTERS>();
    const WgmmaStore<scalar_t> store{p.result};
    // This warp's unit within the tile, and the pixel of the box whose row of 16 bytes this lane
    // hands to ldmatrix: lanes 8 to 15 and 24 to 31 have the second eight rows of A, lanes 16 to 31
    // the second eight channels.
    const int unit_w = warp & ((1 << p.units_w_log) - 1);
    const int unit_h = (warp >> p.units_w_log) & ((1 << p.units_h_log) - 1);
    const int image = warp >> (p.units_w_log + p.units_h_log);
    const int pixel =
        (image * p.box_h + unit_h * Tile::UNIT_H + (lane / 8 % 2) * Tile::PRODUCTS) * p.box_w +
        unit_w * Tile::UNIT_W + lane % 8;
    const int half = lane / 16;
    const uint64_t weights =
        wgmma_operand(data, B_MN ? static_cast<unsigned>(p.taps * p.tap_pitch * 128) : 16);
    const int consumer = warpgroup - 1;
    const unsigned char* const box = data + p.w_bytes + consumer * p.stage_bytes;
    const int others = (share.tiles + consumer) / 2 * p.chunks;
    int boxes = 0;  // of this one, so far
    // Also where there is no tile: what peers bring may not arrive in a block that has exited.
    mbarrier_wait(&barriers.weights, 0);
    for (int tile = consumer; tile < share.tiles; tile += 2) {
      float acc[Tile::PRODUCTS][Tile::BLOCK_N / 2];
      uint32_t a[2][FRAGMENTS][4];
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        const bool last = chunk == p.chunks - 1;
        const int per_tap = last ? p.last_eighths : Tile::CHUNK / 8;
        const int reciprocal = last ? p.last_reciprocal : halo_reciprocal(Tile::CHUNK / 8);
        const int all = last ? p.last_all : Tile::CHUNK / Tile::STEP * p.filter_w;
        // The second consumer's box k follows the first one's box k, the first one's box k the
        // second one's box k - 1.
        if (boxes - 1 + consumer < others)
          mbarrier_wait(&barriers.turn[consumer], (boxes + consumer - 1) & 1);
        mbarrier_wait(&barriers.full[consumer], boxes & 1);
        const auto multiply = [&](uint32_t(&fragments)[FRAGMENTS][4], int step) {
          const HaloEight first(2 * step, per_tap, reciprocal, p.filter_w - 1);
          const HaloEight mine(2 * step + half, per_tap, reciprocal, p.filter_w - 1);
          halo_multiply<Tile, B_MN>(acc, fragments, box, pixel + mine.s, p.box_w, mine.eighth,
                                    weights,
                                    first.s * p.tap_pitch + chunk * Tile::CHUNK + first.eighth * 8,
                                    p.row_pitch, chunk != 0 || step != 0);
        };
        // Two sets of fragments: one is loaded while the other's products run. An odd number of
        // steps is that of a tile's last box alone, but ptxas sees a way from it to another box,
        // and without the wait there would run all products one by one.
        for (int done = 0; done < all; done += 2) {
          multiply(a[0], done);
          wgmma_wait<1>();
#pragma unroll
          for (int j = 0; j < FRAGMENTS; ++j) wgmma_pin(a[1][j]);
          if (done + 1 < all) {
            multiply(a[1], done + 1);
            wgmma_wait<1>();
          } else {
            wgmma_wait<0>();
          }
#pragma unroll
          for (int j = 0; j < FRAGMENTS; ++j) wgmma_pin(a[0][j]);
        }
        __syncwarp();
        if (lane == 0) {
          mbarrier_arrive(&barriers.empty[consumer]);
          mbarrier_arrive(&barriers.turn[1 - consumer]);
        }
        ++boxes;
      }
      wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < FRAGMENTS; ++j) wgmma_pin(a[1][j]);
#pragma unroll
      for (int i = 0; i < Tile::PRODUCTS; ++i) wgmma_pin(acc[i]);

      const HaloPlace place = halo_place(p, share.first + tile * share.next);
      const int image_at = place.n + image, column = place.w + unit_w * Tile::UNIT_W + lane / 4;
      const int row = place.h + unit_h * Tile::UNIT_H;
      const bool inside = image_at < p.images && column < p.columns;
      const auto number = [&](int h) {  // of a pixel of dst, behind the last one if it is none
        return inside && h < p.rows ? (image_at * p.rows + h) * p.columns + column
                                    : p.result.pixels;
      };
#pragma unroll
      for (int j = 0; j < Tile::PRODUCTS; ++j) {
        // Each product's places anew: there are no registers to work them all out ahead.
        uint32_t at[] = {static_cast<uint32_t>(row + j), static_cast<uint32_t>(share.n)};
        wgmma_pin(at);
        const int low = static_cast<int>(at[0]);
        store_accumulators_by_quads<Tile::BLOCK_N>(
            acc[j], store, number(low), number(low + Tile::PRODUCTS), static_cast<int>(at[1]));
      }
      if constexpr (!B_MN)
        if (p.moments.to != nullptr)
          conv_halo_moments<Tile>(p, share.n, share.first + tile * share.next);
    }
    // A peer may still write here.
    if (p.cluster_log > 0) cluster_sync();
  }
#else
  static_cast<void>(p);  // compiled for another architecture too, never launched there
#endif
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_fprop_halo_kernel(const __grid_constant__ ConvHaloParams p) {
  conv_gather_halo<Tile, false>(p);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_halo_kernel(const __grid_constant__ ConvHaloParams p) {
  conv_gather_halo<Tile, true>(p);
}

}  // namespace fastconv::cuda
