// Depthwise convolution, NHWC, rank 2, R x R taps known at compile time, stride 1 or 2.
//
//   y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*st-pad+r, q*st-pad+s, c] * w[c,r,s]
//
// With the taps mirrored and pad' = R-1-pad it is also dgrad of stride 1: dx from dy.
//
// Mapping   a thread has 16 bytes of channels (8 x 16 bit, 4 x fp32) of one row (n,p) and walks
//           along Q in tiles of TILE outputs. Per filter row it loads the tile's (TILE-1)*st+R
//           columns, each by one 16-byte load, and uses each for all taps and outputs that it meets
//           while it is in registers. blockDim = (lanes along C, rows), so that a warp's load
//           covers whole sectors and neighbouring rows meet in L1.
// Filter    in shared memory as fp32 [R*R+1][channels + skew]: one 16-byte load brings four
//           channels of a tap, and serves TILE * 4 multiply-adds.
// Layouts   x [N,H,W,C], w [C,R,S], y [N,P,Q,C]; C % vector == 0 and x, y aligned to 16 bytes (else
//           conv_fprop_depthwise_any_kernel). Dtypes f32, bf16, f16, all summed in fp32.
// Padding   never read. See accumulate_tile() for infinite weights.
// Bytes     x, y and w once: |x| + |y| + |w|, the halo rows from L1 and L2. 2*R*R FLOPs per output.
//           On an H200 (4e12 B/s, 67e12 FLOP/s fp32) memory is the bound for fp32 and for 16-bit
//           3x3, arithmetic (R*R multiply-adds per 4 bytes) for 16-bit 7x7.
// Occupancy 16-byte vectors of TILE outputs take 64 to 128 registers, so 25% to 50% of the threads
//           an SM holds. What memory needs is bytes in flight, about 21 KiB per SM (4e12 B/s times
//           700 ns over 132 SMs); 512 threads with (TILE-1)*st+R loads each have 40 KiB or more.
//           Not measured on a GPU.
// Statistics    STATS: of y, per block (detail/block_moments.cuh); kernels of their own, because it
//           would take registers from the others.
// Determinism   one thread per output, a fixed order of taps: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/block_moments.cuh"
#include "detail/depthwise_filter.cuh"
#include "detail/epilogue.cuh"

namespace fastconv::cuda {

template <class scalar_t, int R, int STRIDE>
struct FpropWindow {
  // Strided tiles load nearly twice the columns per output, and wait longer for DRAM anyway.
  using Taps = FpropTaps<R, STRIDE, STRIDE == 1 ? 4 : 2>;
  static constexpr int kBlocksPerSm = sizeof(scalar_t) == 4 ? 5 : 4;
};

template <class scalar_t, int R, int STRIDE, bool STATS>
__global__ void __launch_bounds__(kDepthwiseThreads,
                                  (FpropWindow<scalar_t, R, STRIDE>::kBlocksPerSm))
    conv_fprop_depthwise_nhwc_kernel(DepthwiseWindow g, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ w,
                                     const scalar_t* __restrict__ bias,
                                     const StoreEpilogue<float> epilogue,
                                     const MomentTiles<float> moments, scalar_t* __restrict__ y) {
  using Taps = typename FpropWindow<scalar_t, R, STRIDE>::Taps;
  constexpr int kVector = ChannelVector<scalar_t>::kSize;
  FC_DYN_SHARED(float, filter);
  const int channels = blockDim.x * kVector, pitch = channels + kFilterSkew;
  uint32_t channel_block;
  const uint32_t spatial_block = g.channel_blocks.divmod(blockIdx.x, channel_block);
  const int c0 = static_cast<int>(channel_block) * channels;
  const bool finite =
      stage_filter<R>(filter, channels, pitch, w + static_cast<int64_t>(c0) * (R * R),
                      bias == nullptr ? bias : bias + c0, g.C - c0, g.mirrored);
  const WindowJob job = window_job(g, spatial_block, c0 + threadIdx.x * kVector);
  if (!STATS && !job.any) return;
  const int last = !STATS || job.any ? job.last : job.first;

  const scalar_t* const image = x + static_cast<int64_t>(job.n) * g.in_h * g.in_w * g.C + job.c;
  const int64_t row = (static_cast<int64_t>(job.n) * g.out_h + job.row) * g.out_w;
  scalar_t* const out_row = y + row * g.out_pitch + job.c;
  const float* const taps = filter + threadIdx.x * kVector;
  const RowWalk walk{job.row * STRIDE - g.pad_h, 1, 0, 1, R};
#pragma unroll 1
  for (int tile = job.first; tile < last; ++tile) {
    float acc[Taps::kTile][kVector];
#pragma unroll
    for (int t = 0; t < Taps::kTile; ++t)
#pragma unroll
      for (int v = 0; v < kVector; ++v) acc[t][v] = taps[R * R * pitch + v];
    const int q = tile * Taps::kTile;
    accumulate_tile<Taps>(acc, taps, pitch, image, g, walk, q * STRIDE - g.pad_w, finite);
    if (epilogue.any) {
      const scalar_t* const residual =
          static_cast<const scalar_t*>(epilogue.residual) + row * g.C + job.c;
#pragma unroll
      for (int t = 0; t < Taps::kTile; ++t)
        apply_epilogue(epilogue, acc[t], [&](float(&r)[kVector]) {
          if (q + t < g.out_w) load_aligned(residual + static_cast<int64_t>(q + t) * g.C, r);
        });
    }
    store_tile<scalar_t>(out_row, acc, q, g, g.out_pitch);
  }
  if constexpr (STATS) {
    // Outputs of the block: those of its jobs, one behind the other, as long as the longest may be.
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    block_moments<8, kVector, scalar_t>(
        min(channels, g.C - c0), blockDim.y * g.job_outputs.divisor, thread,
        blockDim.x * blockDim.y,
        [&](int c, int i) -> const scalar_t* {
          uint32_t segment, rest;
          const uint32_t job_of_all = spatial_block * blockDim.y + g.job_outputs.divmod(i, rest);
          if (job_of_all >= g.jobs) return nullptr;
          const uint32_t row_of_all = g.segments.divmod(job_of_all, segment);
          const int q = segment * g.job_outputs.divisor + rest;
          if (q >= g.out_w) return nullptr;
          return y + (static_cast<int64_t>(row_of_all) * g.out_w + q) * g.C + c0 + c;
        },
        [&](int c) { return moments.to + (c0 + c) * moments.tiles + spatial_block; });
  }
}

}  // namespace fastconv::cuda
