// Gradient of a depthwise convolution's filter, NHWC, rank 2, R x R taps, stride 1 or 2.
//
//   dw[c,r,s] = sum_{n,p,q} dy[n,p,q,c] * x[n, p*st-pad+r, q*st-pad+s, c]
//
// Mapping   a thread has 16 bytes of channels and one filter row r, hence R sums per channel, in
//           registers. It walks along Q in tiles of TILE outputs: TILE loads of dy and
//           (TILE-1)*st+R of x, each used for every tap that it meets. blockDim = (lanes along C,
//           R filter rows, SLICES); the filter rows of a block read the same dy, and rows of x that
//           are R-1 apart at most: from L1. Slice z takes rows z, z+SLICES, ... of the block's
//           range of (n,p), then the slices are added in shared memory in their order.
//           A second kernel (conv_wgrad_depthwise_sum.cuh) adds the blocks' partial sums.
// Layouts   x [N,H,W,C], dy [N,P,Q,C], dw [C,R,S]; C % vector == 0 and x, dy aligned to 16 bytes
//           (else conv_wgrad_depthwise_any_kernel). Dtypes f32, bf16, f16, summed in fp32.
// Padding   neither read nor multiplied: tiles that reach it guard every product.
// Bytes     |x| + |dy| once, plus partial sums [splits][C*R*R] written and read once. 2*R*R FLOPs
//           per element of dy. Bound by memory but for 16-bit 7x7. Not measured on a GPU.
// Occupancy the sums alone take R*8 registers for 16-bit types; see conv_fprop_depthwise_nhwc.cuh
//           for what memory needs.
// Determinism   ranges and their order depend on the problem and the SM count only: bitwise
//           repeatable.
// Source    the definition.
#pragma once
#include "detail/channel_vector.cuh"
#include "detail/fast_divmod.cuh"

namespace fastconv::cuda {

struct DepthwiseWgradWindow {
  int C;
  int in_h, in_w, out_h, out_w;
  int pad_h, pad_w;
  int64_t rows;   // N * P, below 2^31
  int64_t range;  // rows of one block
  FastDivmod channel_blocks, out_rows;
};

// Threads: whole slices of 128 channels.
template <int R>
constexpr int kWgradWindowThreads = R == 3   ? 192
                                    : R == 5 ? 160
                                             : 224;

template <class scalar_t, int R, int STRIDE>
struct WgradWindow {
  static constexpr int kTile = STRIDE == 1 && R < 7 ? 4 : 2;
  static constexpr int kBlocksPerSm = sizeof(scalar_t) == 4 ? (R < 7 ? 4 : 2) : (R == 3 ? 3 : 2);
};

// partial [splits][C][R*R]; shared memory [R*R][lanes * vector]
template <class scalar_t, int R, int STRIDE>
__global__ void __launch_bounds__(kWgradWindowThreads<R>,
                                  (WgradWindow<scalar_t, R, STRIDE>::kBlocksPerSm))
    conv_wgrad_depthwise_nhwc_kernel(DepthwiseWgradWindow g, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ dy, float* __restrict__ partial) {
  using Vector = ChannelVector<scalar_t>;
  constexpr int kVector = Vector::kSize;
  constexpr int kTile = WgradWindow<scalar_t, R, STRIDE>::kTile;
  constexpr int kColumns = (kTile - 1) * STRIDE + R;
  FC_DYN_SHARED(float, sums);
  const int channels = blockDim.x * kVector;
  uint32_t channel_block;
  const uint32_t split = g.channel_blocks.divmod(blockIdx.x, channel_block);
  const int c0 = static_cast<int>(channel_block) * channels;
  const int c = c0 + threadIdx.x * kVector;
  const int r = threadIdx.y;

  float acc[R][kVector] = {};
  if (c < g.C) {
    const int64_t begin = split * g.range, end = min(begin + g.range, g.rows);
#pragma unroll 1
    for (int64_t at = begin + threadIdx.z; at < end; at += blockDim.z) {
      uint32_t p;
      const int n = static_cast<int>(g.out_rows.divmod(static_cast<uint32_t>(at), p));
      const int h = static_cast<int>(p) * STRIDE - g.pad_h + r;
      if (static_cast<unsigned>(h) >= static_cast<unsigned>(g.in_h)) continue;
      const scalar_t* dy_at = dy + at * g.out_w * g.C + c;
      const scalar_t* x_at =
          x + ((static_cast<int64_t>(n) * g.in_h + h) * g.in_w - g.pad_w) * g.C + c;
#pragma unroll 1
      for (int q = 0; q < g.out_w; q += kTile) {
        const int column = q * STRIDE - g.pad_w;
        const bool interior = column >= 0 && column + kColumns <= g.in_w && q + kTile <= g.out_w;
        Vector grad[kTile], in[kColumns];
        if (interior) {
#pragma unroll
          for (int t = 0; t < kTile; ++t, dy_at += g.C) grad[t].load(dy_at);
#pragma unroll
          for (int j = 0; j < kColumns; ++j) in[j].load(x_at + static_cast<int64_t>(j) * g.C);
#pragma unroll
          for (int quad = 0; quad < Vector::kQuads; ++quad) {
            float gradient[kTile][4];
#pragma unroll
            for (int t = 0; t < kTile; ++t) grad[t].unpack(quad, gradient[t]);
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
              float value[4];
              in[j].unpack(quad, value);
#pragma unroll
              for (int t = 0; t < kTile; ++t) {
                const int s = j - t * STRIDE;
                if (s < 0 || s >= R) continue;
#pragma unroll
                for (int v = 0; v < 4; ++v) acc[s][quad * 4 + v] += gradient[t][v] * value[v];
              }
            }
          }
        } else {
#pragma unroll
          for (int t = 0; t < kTile; ++t, dy_at += g.C)
            if (q + t < g.out_w) grad[t].load(dy_at);
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            if (static_cast<unsigned>(column + j) < static_cast<unsigned>(g.in_w))
              in[j].load(x_at + static_cast<int64_t>(j) * g.C);
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            if (static_cast<unsigned>(column + j) >= static_cast<unsigned>(g.in_w)) continue;
#pragma unroll
            for (int t = 0; t < kTile; ++t) {
              const int s = j - t * STRIDE;
              if (s < 0 || s >= R || q + t >= g.out_w) continue;
#pragma unroll
              for (int quad = 0; quad < Vector::kQuads; ++quad) {
                float value[4], gradient[4];
                in[j].unpack(quad, value);
                grad[t].unpack(quad, gradient);
#pragma unroll
                for (int v = 0; v < 4; ++v) acc[s][quad * 4 + v] += gradient[v] * value[v];
              }
            }
          }
        }
        x_at += static_cast<int64_t>(kTile * STRIDE) * g.C;
      }
    }
  }

#pragma unroll 1
  for (int slice = 0; slice < static_cast<int>(blockDim.z); ++slice) {
    if (static_cast<int>(threadIdx.z) == slice) {
#pragma unroll
      for (int s = 0; s < R; ++s) {
        float* const to = sums + (r * R + s) * channels + threadIdx.x * kVector;
#pragma unroll
        for (int v = 0; v < kVector; ++v) to[v] = slice == 0 ? acc[s][v] : to[v] + acc[s][v];
      }
    }
    __syncthreads();
  }
  const int threads = blockDim.x * R * blockDim.z;
  const int thread = (threadIdx.z * R + threadIdx.y) * blockDim.x + threadIdx.x;
  float* const to = partial + (static_cast<int64_t>(split) * g.C + c0) * (R * R);
  const int count = min(channels, g.C - c0) * (R * R);
#pragma unroll 1
  for (int e = thread; e < count; e += threads) {
    const int channel = e / (R * R);
    to[e] = sums[(e - channel * (R * R)) * channels + channel];
  }
}

}  // namespace fastconv::cuda
