// y[n,k,o,p,q] = b[k] + sum over c,t,r,s of x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s], as the
// matrix product y [N*O*P*Q, K] = cols [N*O*P*Q, T*R*S*C] * w^T on the warpgroup tensor cores of
// sm_90a, for NHWC. The column matrix is never stored: TMA's im2col mode reads a block's pixels for
// one tap and 128 bytes of channels, padding and images' borders included, in one instruction.
//
// Threads: persistent blocks of three warpgroups, one block to an SM. One thread of the first
// issues all copies into a ring of NUM_STAGES stages; the other two multiply, 64 or 128 rows each,
// and store their part of the tile while the ring already fills for the next one. A stage is full
// when its bytes have arrived (one mbarrier), free when all eight warps that multiply have waited
// for what reads it (another one): a warp's wait for wgmma speaks for that warp alone.
//
// bf16, fp16, and fp32 in TF32 (fprop); accumulation in fp32, gemm_k ascending. fp32 is rounded to
// TF32 by TMA, whose maps have a type for it: wgmma itself would cut the low bits off (taken from
// CUTLASS, which relies on it; not measured on a GPU). FLOPs: 2 N K O P Q C T R S, channels rounded
// up to 128 bytes to a tap. From L2: 1/BLOCK_M + 1/BLOCK_N elements per multiply-add, 0.0117 bytes
// per FLOP at 256x128, which 6 TB/s of L2 would bound at 512 TFLOP/s; DRAM: x, w, y once where the
// L2 holds what neighbouring blocks share. Workspace: none. Deterministic. Speed: not measured on a
// GPU. Sources: PTX ISA, "Tensors"; Chetlur et al., "cuDNN: Efficient Primitives for Deep
// Learning", 2014, section 3.
//
// dgrad of stride 1 is the same product over dy, taps backwards: dx [N*D*H*W, C] = cols(dy) * w,
// where w's rows are gemm_k and its channels gemm_n, which wgmma reads as they lie (MN-major).
#pragma once
#include "detail/conv_tma_params.cuh"
#include "detail/wgmma_tile.cuh"

namespace fastconv::cuda {

// One stage's operands: cols [BLOCK_M, BLOCK_K] of tap t, r, s, and of w [BLOCK_N, BLOCK_K], or
// [BLOCK_K, BLOCK_N] where B_MN, 64 channels at a time.
template <class Tile, bool B_MN>
struct ConvTmaProducer {
  const ConvTmaParams& p;
  unsigned char* ring;
  uint64_t *full, *empty;
  RingPosition<Tile::NUM_STAGES> at;

  __device__ __forceinline__ void load(const ConvTmaPlace& place) {
    uint32_t rest;
    const int n = p.image.divmod(place.m, rest);
    const uint32_t o = p.plane.divmod(rest, rest);
    const uint32_t ph = p.row.divmod(rest, rest);
    const int d0 = static_cast<int>(o) * p.stride[0] + p.first[0];
    const int h0 = static_cast<int>(ph) * p.stride[1] + p.first[1];
    const int w0 = static_cast<int>(rest) * p.stride[2] + p.first[2];
    int tap = 0;
    for (int t = 0; t < p.filter[0]; ++t)
      for (int r = 0; r < p.filter[1]; ++r)
        for (int s = 0; s < p.filter[2]; ++s, ++tap)
          for (int chunk = 0; chunk < p.chunks; ++chunk) {
            mbarrier_wait(empty + at.slot, at.parity ^ 1);
            uint64_t* const barrier = full + at.slot;
            mbarrier_arrive_expect(barrier, Tile::STAGE_BYTES);
            unsigned char* const a = ring + at.slot * Tile::STAGE_BYTES;
            const int channel = chunk * Tile::BLOCK_K;
            if (p.volume)
              tma_load_im2col(a, &p.src, barrier, channel, w0, h0, d0, n, s * p.dilation[2],
                              r * p.dilation[1], t * p.dilation[0]);
            else
              tma_load_im2col(a, &p.src, barrier, channel, w0, h0, n, s * p.dilation[2],
                              r * p.dilation[1]);
            load_w(a + Tile::A_BYTES, barrier, place.n, tap, channel);
            at.advance();
          }
  }

  __device__ __forceinline__ void load_w(unsigned char* to, uint64_t* barrier, int n, int tap,
                                         int channel) const {
    if constexpr (B_MN) {
      const int taps = p.filter[0] * p.filter[1] * p.filter[2];
#pragma unroll
      for (int part = 0; part < Tile::BLOCK_N; part += Tile::BLOCK_K)
        tma_load_tile(to + part * 128, &p.w, barrier, n + part, taps - 1 - tap, channel);
    } else {
#pragma unroll
      for (int part = 0; part < Tile::W_PARTS; ++part)
        tma_load_tile(to + part * Tile::BLOCK_N * 128, &p.w, barrier, channel, tap,
                      n + part * p.channels);
    }
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
// to `empty` once it is read.
template <class Tile, bool B_MN>
struct ConvTmaMainloop {
  static __device__ __forceinline__ void run(float (&acc)[Tile::PRODUCTS][Tile::BLOCK_N / 2],
                                             const unsigned char* ring, uint64_t* full,
                                             uint64_t* empty, RingPosition<Tile::NUM_STAGES>& at,
                                             int consumer, int k_tiles) {
    const int lane = threadIdx.x % 32;
    int read = 0;  // the slot of the products in flight
    for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
      mbarrier_wait(full + at.slot, at.parity);
#pragma unroll
      for (int i = 0; i < Tile::PRODUCTS; ++i) wgmma_pin(acc[i]);
      wgmma_fence();
      conv_tma_multiply<Tile, B_MN>(acc, ring + at.slot * Tile::STAGE_BYTES, consumer, k_tile != 0);
      wgmma_commit();
      // The stage before is read once these are the only ones in flight.
      wgmma_wait<1>();
      if (lane == 0 && k_tile != 0) mbarrier_arrive(empty + read);
#pragma unroll
      for (int i = 0; i < Tile::PRODUCTS; ++i) wgmma_pin(acc[i]);
      read = at.slot;
      at.advance();
    }
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(empty + read);
#pragma unroll
    for (int i = 0; i < Tile::PRODUCTS; ++i) wgmma_pin(acc[i]);
  }
};

// One body for both directions; the kernels below give it their names.
template <class Tile, bool B_MN, class Mainloop = ConvTmaMainloop<Tile, B_MN>>
__device__ __forceinline__ void conv_gather_tma(const ConvTmaParams& p) {
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
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::NUM_STAGES; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, Tile::CONSUMER_WARPS);
    }
    mbarrier_init_fence();
  }
  __syncthreads();

  if (warpgroup == 0) {
    give_registers<Tile::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch_map(&p.src);
      tma_prefetch_map(&p.w);
      ConvTmaProducer<Tile, B_MN> producer{p, ring, full, empty, {}};
      for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x)
        producer.load(conv_tma_place<Tile>(p, tile));
    }
  } else {
    take_registers<Tile::CONSUMER_REGISTERS>();
    const int consumer = warpgroup - 1;
    const WgmmaStore<scalar_t> store{static_cast<scalar_t*>(p.dst),
                                     static_cast<const scalar_t*>(p.bias),
                                     static_cast<const scalar_t*>(p.epilogue.residual),
                                     p.epilogue,
                                     p.dst_pitch,
                                     p.pixels,
                                     p.channels,
                                     p.vec8,
                                     p.residual_vec8};
    float* const turn = reinterpret_cast<float*>(turns + (warp - 4) * Tile::TURN_BYTES);
    RingPosition<Tile::NUM_STAGES> at;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      float acc[Tile::PRODUCTS][Tile::BLOCK_N / 2];
      Mainloop::run(acc, ring, full, empty, at, consumer, p.k_tiles);
      const ConvTmaPlace place = conv_tma_place<Tile>(p, tile);
#pragma unroll
      for (int i = 0; i < Tile::PRODUCTS; ++i)
        store_accumulators<Tile::BLOCK_N>(
            acc[i], turn, store, place.m + (consumer * Tile::PRODUCTS + i) * 64 + warp % 4 * 16,
            place.n);
    }
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
  conv_gather_tma<Tile, true>(p);
}

}  // namespace fastconv::cuda
