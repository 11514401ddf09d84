// y[n,k,o,p,q] = b[k] + sum over c,t,r,s of x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s], as the
// matrix product y [N*O*P*Q, K] = cols [N*O*P*Q, T*R*S*C] * w^T on the warpgroup tensor cores of
// sm_90a, for NHWC. The column matrix is never stored: TMA's im2col mode reads a block's pixels for
// one tap and 128 bytes of channels, padding and images' borders included, in one instruction.
//
// Threads: persistent blocks of three warpgroups, one block to an SM. One thread of the first
// issues all copies into a ring of NUM_STAGES stages; the other two multiply, 64 or 128 rows each,
// and store their part of the tile while the ring already fills for the next one: through boxes of
// shared memory that TMA stores from (staged_store.cuh), a split tile from registers. A stage is
// full when its bytes have arrived (one mbarrier), free when all eight warps that multiply have
// waited for what reads it (another one): a warp's wait for wgmma speaks for that warp alone.
//
// Statistics of y where `moments` asks, per tile of BLOCK_M pixels: the warps that multiply wait
// until what they have stored is there and read it back, while the ring fills (block_moments.cuh).
// A split has none.
//
// Clusters, as the launch has it. Two blocks with neighbouring tiles share the rows of src, or of
// w: each brings half of them for both by multicast, and a stage is free when the warps of both are
// done with it. Two or four such split gemm_k, where tiles are too few for all SMs: sums go through
// distributed shared memory and are added in the order of the slices.
//
// Where the tiles make no whole number of rounds, the kernels with _streamk in their name cut the
// last ones' gemm_k evenly among all clusters (conv_tma_work.cuh): workspace BLOCK_M BLOCK_N floats
// to a block at most; for one number of SMs the same bits in any order.
//
// bf16, fp16, and fp32 in TF32; accumulation in fp32, gemm_k ascending within a slice. fp32
// is rounded to TF32 by TMA, whose maps have a type for it: wgmma itself would cut the low bits off
// (taken from CUTLASS, which relies on it; not measured on a GPU). FLOPs: 2 N K O P Q C T R S,
// channels rounded up to 128 bytes to a tap. From L2: 1/m + 1/n elements per multiply-add of a
// cluster's tile m x n: 0.0117 bytes per FLOP at 256x128, which 5.5 TB/s of L2 bound at 470
// TFLOP/s, 0.0078 at two blocks' 256x256; DRAM: x, w, y once where the L2 holds what neighbouring
// blocks share. Workspace: none. Deterministic. Speed: not measured on a GPU. Sources: PTX ISA,
// "Tensors", "Cluster"; Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014,
// section 3.
//
// dgrad of stride 1 is the same product over dy, taps backwards: dx [N*D*H*W, C] = cols(dy) * w,
// where w's rows are gemm_k and its channels gemm_n, which wgmma reads as they lie (MN-major); not
// so of TF32, for which w is turned beforehand (conv_filter_tf32.cuh), taps and all: the product is
// then fprop's.
#pragma once
#include "detail/conv_tma_work.cuh"
#include "detail/named_barrier.cuh"
#include "detail/staged_store.cuh"
#include "detail/tma_multicast.cuh"
#include "detail/wgmma_mainloop.cuh"

namespace fastconv::cuda {

// One stage's operands: cols [BLOCK_M, BLOCK_K] of tap t, r, s, and of w [BLOCK_N, BLOCK_K], or
// [BLOCK_K, BLOCK_N] where B_MN, 64 channels at a time. What two blocks share each brings half of,
// for both; the map's boxes are half as large then.
template <class Tile, bool B_MN>
struct ConvTmaProducer {
  const ConvTmaParams& p;
  const ConvTmaPart& part;
  unsigned char* ring;
  uint64_t *full, *empty;
  RingPosition<Tile::NUM_STAGES> at;

  __device__ __forceinline__ unsigned both() const { return 3u << (part.rank & ~1); }

  __device__ __forceinline__ void load(const ConvTmaPlace& place, int k_begin, int k_end) {
    const int shift = p.shares_src ? part.half * (Tile::BLOCK_M / 2) : 0;
    uint32_t rest;
    const int n = p.image.divmod(place.m + shift, rest);
    const uint32_t o = p.plane.divmod(rest, rest);
    const uint32_t ph = p.row.divmod(rest, rest);
    const int d0 = static_cast<int>(o) * p.stride[0] + p.first[0];
    const int h0 = static_cast<int>(ph) * p.stride[1] + p.first[1];
    const int w0 = static_cast<int>(rest) * p.stride[2] + p.first[2];
    uint32_t chunk, s, r;
    int tap = static_cast<int>(p.chunks.divmod(k_begin, chunk));
    uint32_t t = p.filter_h.divmod(p.filter_w.divmod(tap, s), r);
    for (int k_tile = k_begin; k_tile < k_end; ++k_tile) {
      mbarrier_wait(empty + at.slot, at.parity ^ 1);
      uint64_t* const barrier = full + at.slot;
      mbarrier_arrive_expect(barrier, Tile::STAGE_BYTES);
      unsigned char* const a = ring + at.slot * Tile::STAGE_BYTES;
      const int channel = static_cast<int>(chunk) * Tile::BLOCK_K;
      const int dw = static_cast<int>(s) * p.dilation[2], dh = static_cast<int>(r) * p.dilation[1];
      const int dd = static_cast<int>(t) * p.dilation[0];
      if (p.shares_src) {
        if (p.volume)
          tma_multicast_im2col(a + shift * 128, &p.src, barrier, both(), channel, w0, h0, d0, n, dw,
                               dh, dd);
        else
          tma_multicast_im2col(a + shift * 128, &p.src, barrier, both(), channel, w0, h0, n, dw,
                               dh);
      } else {
        if (p.volume)
          tma_load_im2col(a, &p.src, barrier, channel, w0, h0, d0, n, dw, dh, dd);
        else
          tma_load_im2col(a, &p.src, barrier, channel, w0, h0, n, dw, dh);
      }
      load_w(a + Tile::A_BYTES, barrier, place.n, tap, channel);
      at.advance();
      if (++chunk == p.chunks.divisor) {
        chunk = 0;
        ++tap;
        if (++s == p.filter_w.divisor) {
          s = 0;
          if (++r == p.filter_h.divisor) {
            r = 0;
            ++t;
          }
        }
      }
    }
  }

  __device__ __forceinline__ void load_w(unsigned char* to, uint64_t* barrier, int n, int tap,
                                         int channel) const {
    if constexpr (B_MN) {
      const int taps = p.filter[0] * p.filter[1] * p.filter[2];
      constexpr int HALF = Tile::BLOCK_N / 2;
#pragma unroll
      for (int columns = 0; columns < Tile::BLOCK_N; columns += Tile::BLOCK_K) {
        if (!p.shares_w)
          tma_load_tile(to + columns * 128, &p.w, barrier, n + columns, taps - 1 - tap, channel);
        else if (columns / HALF == part.half)
          tma_multicast_tile(to + columns * 128, &p.w, barrier, both(), n + columns, taps - 1 - tap,
                             channel);
      }
    } else if (p.shares_w) {
      const int rows = part.half * (Tile::BLOCK_N / 2);
#pragma unroll
      for (int i = 0; i < Tile::W_PARTS; ++i)
        tma_multicast_tile(to + (i * Tile::BLOCK_N + rows) * 128, &p.w, barrier, both(), channel,
                           tap, n + rows + i * p.result.channels);
    } else {
#pragma unroll
      for (int i = 0; i < Tile::W_PARTS; ++i)
        tma_load_tile(to + i * Tile::BLOCK_N * 128, &p.w, barrier, channel, tap,
                      n + i * p.result.channels);
    }
  }
};

// Gives a stage back once this warp has read it: to the block's own producer, and where another
// block brings half of what lies there, to that one's.
struct ConvTmaRelease {
  uint64_t* empty;
  int sharers, other;

  __device__ __forceinline__ void operator()(int slot) const {
    const int lane = threadIdx.x % 32;
    if (lane == 0) mbarrier_arrive(empty + slot);
    if (lane == 1 && sharers == 2) mbarrier_arrive_cluster(empty + slot, other);
  }
};

template <class Tile, bool B_MN>
__device__ __forceinline__ void conv_tma_multiply(float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2],
                                                  const unsigned char* stage, int consumer,
                                                  bool accumulate) {
  constexpr int STEPS = 4;  // of 32 bytes of gemm_k
  const uint64_t a = wgmma_operand(stage + consumer * Tile::PRODUCTS * 64 * 128);
  const uint64_t b = wgmma_operand(stage + Tile::A_BYTES, B_MN ? Tile::BLOCK_K * 128 : 16);
#pragma unroll
  for (int step = 0; step < STEPS; ++step)
#pragma unroll
    for (int i = 0; i < Tile::PRODUCTS; ++i)
      wgmma<typename Tile::scalar_t, Tile::BLOCK_N, false, B_MN>(
          acc[i], wgmma_moved(a, i * 64 * 128 + step * 32),
          wgmma_moved(b, step * (B_MN ? Tile::BLOCK_K / STEPS * 128 : 32)),
          accumulate || step != 0);
}

// The sums of one tile: a warpgroup's products of `k_tiles` stages, from `at` on, each given back
// once it is read.
template <class Tile, bool B_MN>
struct ConvTmaMainloop {
  template <class Release>
  static __device__ __forceinline__ void run(float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2],
                                             const unsigned char* ring, uint64_t* full,
                                             const Release& release,
                                             RingPosition<Tile::NUM_STAGES>& at, int consumer,
                                             int k_tiles) {
    wgmma_mainloop<Tile>(acc, ring, full, release, at, k_tiles,
                         [&](const unsigned char* stage, bool accumulate) {
                           conv_tma_multiply<Tile, B_MN>(acc, stage, consumer, accumulate);
                         });
  }
};

// The sums of a tile whose gemm_k blocks have split among them, in the order of their slices: each
// block leaves its own in its ring, which is empty between two tiles, as float, 16 rows and 64
// columns at a time, and adds up and stores a part of every 16 rows.
template <class Tile>
__device__ __forceinline__ void conv_tma_store_slices(
    const float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2], float* ring,
    const WgmmaStore<typename Tile::scalar_t>& store, const ConvTmaParams& p,
    const ConvTmaPart& part, const ConvTmaPlace& place) {
  constexpr int PARTS = Tile::BLOCK_N / 64;
  static_assert(Tile::BLOCK_M * Tile::BLOCK_N * 4 <= Tile::RING_BYTES);
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
  const int ranks = static_cast<int>(p.cluster.divisor) / p.split, rows = 16 / p.split;
  float* const mine = ring + warp * (Tile::PRODUCTS * PARTS * 1024);
  // The other warpgroup's products read stages where this one's sums go.
  named_barrier_sync(1, 128 * Tile::CONSUMERS);
#pragma unroll
  for (int i = 0; i < Tile::PRODUCTS; ++i)
#pragma unroll
    for (int n = 0; n < PARTS; ++n)
      turn_accumulators<Tile::BLOCK_N>(acc[i], n * 64, mine + (i * PARTS + n) * 1024);
  // TMA writes there next.
  fence_proxy_async();
  cluster_sync();
  const int column = lane % 8 * 8;
#pragma unroll 1
  for (int sub = 0; sub < Tile::PRODUCTS * PARTS; ++sub) {
    const int m = place.m + ((warp / 4 * Tile::PRODUCTS + sub / PARTS) * 4 + warp % 4) * 16;
    const int n = place.n + sub % PARTS * 64 + column;
    float bias8[8];
    store.load_bias(n, bias8);
#pragma unroll 1
    for (int i = lane / 8; i < rows; i += 4) {
      const int row = part.slice * rows + i;
      const float* const from = mine + sub * 1024;
      float v[8] = {};
#pragma unroll 1
      for (int slice = 0; slice < p.split; ++slice) {
        const int rank = slice * ranks + part.half;
        const float4 low =
            cluster_load(reinterpret_cast<const float4*>(from + turned_place(row, column)), rank);
        const float4 high = cluster_load(
            reinterpret_cast<const float4*>(from + turned_place(row, column + 4)), rank);
        const float more[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = slice == 0 ? more[e] : v[e] + more[e];
      }
      store.store(m + row, n, bias8, v);
    }
  }
  cluster_sync();  // the others have read the ring
}

// A warp's rows of a tile: of product i those from m + 64 i on.
template <class Tile, bool FOLLOWED>
__device__ __forceinline__ void conv_tma_store(
    const float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2],
    BoxPair<StoreBox<typename Tile::scalar_t>>& boxes, const ConvTmaParams& p, int m, int n) {
  using Box = StoreBox<typename Tile::scalar_t>;
#pragma unroll
  for (int part = 0; part < Tile::BLOCK_N; part += Box::CHANNELS) {
    const int channel = n + part;
    if (channel >= p.result.channels) return;
    float bias[Box::LANE_CHANNELS];
    if constexpr (FOLLOWED) load_box_bias<Box>(p.result, channel, bias);
#pragma unroll
    for (int i = 0; i < Tile::PRODUCTS; ++i) {
      const int first = m + i * 64;
      if (first >= p.result.pixels) break;
      const auto pixel = [&](int row) { return first + row; };
      unsigned char* const box = boxes.next();
      fill_box<Box, FOLLOWED>(p.result, box, acc[i], part, bias, channel, pixel);
      boxes.store(p.result, box, channel, pixel,
                  [&] { tma_store_tile(&p.dst, box, channel, first); });
    }
  }
}

// Moments of a tile of y that the warps which multiply have stored, from L2 where it has just come
// to lie: the accumulators leave no registers for sums beside them.
template <class Tile>
__device__ __forceinline__ void conv_tma_moments(const ConvTmaParams& p,
                                                 const ConvTmaPlace& place) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int THREADS = 128 * Tile::CONSUMERS;
  // A cluster's second block may have nothing to do.
  const int pixels = min(Tile::BLOCK_M, p.result.pixels - place.m);
  const int channels = min(Tile::BLOCK_N, p.result.channels - place.n);
  if (pixels <= 0 || channels <= 0) return;
  if (threadIdx.x % 32 == 0) tma_store_wait<0>();
  named_barrier_sync(1, THREADS);  // what the others have stored
  __threadfence();                 // past L1, which does not hear of TMA's stores
  const scalar_t* const y =
      static_cast<const scalar_t*>(p.result.base) + place.m * p.result.pitch + place.n;
  CountedMoment<float>* const to =
      p.moments.to + place.n * p.moments.tiles + place.m / Tile::BLOCK_M;
  const auto leave = [&](auto vec) {
    stored_moments<8, decltype(vec)::value, scalar_t>(
        channels, pixels, static_cast<int>(threadIdx.x) - 128, THREADS,
        [&](int c, int i) { return y + i * p.result.pitch + c; },
        [&](int c) { return to + c * p.moments.tiles; });
  };
  if (p.result.vec8)
    leave(std::integral_constant<int, 8>());
  else
    leave(std::integral_constant<int, 1>());
}

// One body for both directions; the kernels below give it their names. FPROP: bias, epilogue and
// moments may follow.
template <class Tile, bool B_MN, class Mainloop = ConvTmaMainloop<Tile, B_MN>, bool FPROP = !B_MN,
          class Work = ConvTmaTiles>
__device__ __forceinline__ void conv_gather_tma(const ConvTmaParams& p,
                                                const typename Work::Params& shares = {}) {
#if defined(FC_SM90A)
  using scalar_t = typename Tile::scalar_t;
  FC_DYN_SHARED(unsigned char, shared);
  unsigned char* const ring =
      shared +
      (Tile::ALIGNMENT - reinterpret_cast<uintptr_t>(shared) % Tile::ALIGNMENT) % Tile::ALIGNMENT;
  unsigned char* const turns = ring + Tile::RING_BYTES;
  uint64_t* const full =
      reinterpret_cast<uint64_t*>(turns + Tile::CONSUMER_WARPS * Tile::TURN_BYTES);
  uint64_t* const empty = full + Tile::NUM_STAGES;
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32;
  const int sharers = ConvTmaPart::pairs(p) ? 2 : 1;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::NUM_STAGES; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, Tile::CONSUMER_WARPS * sharers);
    }
    mbarrier_init_fence();
  }
  if (p.cluster.divisor > 1)
    cluster_sync();
  else
    __syncthreads();
  const ConvTmaPart part(p);

  if (warpgroup == 0) {
    give_registers<Tile::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch_map(&p.src);
      tma_prefetch_map(&p.w);
      if (p.result.by_tma) tma_prefetch_map(&p.dst);
    }
    ConvTmaProducer<Tile, B_MN> producer{p, part, ring, full, empty, {}};
    for (Work work(p, shares, part); work.more(); work.advance()) {
      if (threadIdx.x == 0)
        producer.load(conv_tma_place<Tile>(p, work.tile, part.half), work.k_begin, work.k_end);
      if (!Work::kStreams && p.split > 1) {
        cluster_sync();
        cluster_sync();
      }
    }
    if (p.cluster.divisor > 1) cluster_sync();
  } else {
    take_registers<Tile::CONSUMER_REGISTERS>();
    const int consumer = warpgroup - 1;
    const WgmmaStore<scalar_t> store{p.result};
    const ConvTmaRelease release{empty, sharers, part.other};
    BoxPair<StoreBox<scalar_t>> boxes{turns + (warp - 4) * Tile::TURN_BYTES};
    RingPosition<Tile::NUM_STAGES> at;
    for (Work work(p, shares, part); work.more(); work.advance()) {
      float acc[Tile::PRODUCTS][Tile::BLOCK_N / 2];
      Mainloop::run(acc, ring, full, release, at, consumer, work.k_end - work.k_begin);
      const ConvTmaPlace place = conv_tma_place<Tile>(p, work.tile, part.half);
      if constexpr (Work::kStreams) {
        if (work.leaves()) {
          work.template leave<Tile>(acc);
          continue;
        }
        if (work.ends()) work.template add_others<Tile>(acc);
      } else if (p.split > 1) {
        conv_tma_store_slices<Tile>(acc, reinterpret_cast<float*>(ring), store, p, part, place);
        continue;
      }
      conv_tma_store<Tile, FPROP>(
          acc, boxes, p, place.m + consumer * Tile::PRODUCTS * 64 + warp % 4 * 16, place.n);
      if constexpr (FPROP)
        if (p.moments.to != nullptr) conv_tma_moments<Tile>(p, place);
    }
    if (threadIdx.x % 32 == 0) tma_store_wait_read<0>();
    // A peer may still write here.
    if (p.cluster.divisor > 1) cluster_sync();
  }
#else
  static_cast<void>(p);  // compiled for another architecture too, never launched there
#endif
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_fprop_tma_kernel(const __grid_constant__ ConvTmaParams p) {
  conv_gather_tma<Tile, false>(p);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_tma_kernel(const __grid_constant__ ConvTmaParams p) {
  constexpr bool B_MN = sizeof(typename Tile::scalar_t) == 2;
  conv_gather_tma<Tile, B_MN, ConvTmaMainloop<Tile, B_MN>, false>(p);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_fprop_tma_streamk_kernel(const __grid_constant__ ConvTmaParams p,
                                  const __grid_constant__ ConvTmaStream::Params shares) {
  conv_gather_tma<Tile, false, ConvTmaMainloop<Tile, false>, true, ConvTmaStream>(p, shares);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_tma_streamk_kernel(const __grid_constant__ ConvTmaParams p,
                                  const __grid_constant__ ConvTmaStream::Params shares) {
  conv_gather_tma<Tile, true, ConvTmaMainloop<Tile, true>, false, ConvTmaStream>(p, shares);
}

}  // namespace fastconv::cuda
