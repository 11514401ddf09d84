// Depthwise convolution of every kind: the fallback of the kernels of compile-time filter size.
//
//   y[n,k,o,p,q] = bias[k] + sum_{t,r,s} x[n, k/m, o*st-pd+t*dl, ...] * w[k,t,r,s],  m = K / C
//
// Mapping   one thread per output, or per 16 bytes of channels of one (VEC > 1: NHWC, m = 1,
//           C % VEC == 0, x and y aligned to 16 bytes). NHWC: blockDim = (lanes along K, pixels).
//           NCHW: lanes = 1, a block has one k and walks its pixels, q fastest. The block's filters
//           are in shared memory as fp32 where they fit, else read from global memory.
// Layouts   NCHW, NHWC. Ranks 1 to 3. Dtypes f32, bf16, f16, summed in fp32.
// Padding   a tap outside of x is skipped: neither read nor multiplied.
// Bytes     |x| + |y| + |w| from DRAM; every x is loaded once per tap, from L1. 2 * taps FLOPs per
//           output, at one load per multiply-add (per VEC of them): bound by load issue. Not
//           measured on a GPU.
// Statistics    STATS: of y, per block (detail/block_moments.cuh); kernels of their own, because it
//           would take registers from the others.
// Determinism   one thread per output, taps in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/block_moments.cuh"
#include "detail/depthwise_any.cuh"
#include "detail/epilogue.cuh"

namespace fastconv::cuda {

template <class scalar_t, bool NHWC, int VEC, bool STATS>
__global__ void __launch_bounds__(kDepthwiseAnyThreads, (STATS && VEC > 1 ? 6 : 8))
    conv_fprop_depthwise_any_kernel(DepthwiseAny g, const scalar_t* __restrict__ x,
                                    const scalar_t* __restrict__ w,
                                    const scalar_t* __restrict__ bias,
                                    const StoreEpilogue<float> epilogue,
                                    const MomentTiles<float> moments, scalar_t* __restrict__ y) {
  FC_DYN_SHARED(float, tile);  // [taps][filters]
  const int filters = blockDim.x * VEC;
  uint32_t channel_block;
  const uint32_t range = g.blocks.divmod(blockIdx.x, channel_block);
  const int k0 = static_cast<int>(channel_block) * filters, lane = threadIdx.x * VEC;
  const int k = k0 + lane;
  const scalar_t* const w_block = w + static_cast<int64_t>(k0) * g.taps;
  if (g.staged) stage_filters(tile, w_block, filters, g.taps, g.K - k0);
  if (!STATS && k >= g.K) return;
  const int c = VEC > 1 ? k : k / g.multiplier;

  const int64_t begin = range * g.range, end = min(begin + g.range, g.pixels);
  const int64_t own_end = !STATS || k < g.K ? end : begin;
#pragma unroll 1
  for (int64_t pixel = begin + threadIdx.y; pixel < own_end; pixel += blockDim.y) {
    const PixelAt at = decode_pixel(g, pixel);
    float acc[VEC];
#pragma unroll
    for (int v = 0; v < VEC; ++v) acc[v] = bias == nullptr ? 0.f : to_acc(bias[k + v]);
    const int d0 = at.at[0] * g.stride[0] - g.padding[0];
    const int h0 = at.at[1] * g.stride[1] - g.padding[1];
    const int w0 = at.at[2] * g.stride[2] - g.padding[2];
#pragma unroll 1
    for (int t = 0; t < g.filter[0]; ++t) {
      const int d = d0 + t * g.dilation[0];
      if (static_cast<unsigned>(d) >= static_cast<unsigned>(g.in[0])) continue;
#pragma unroll 1
      for (int r = 0; r < g.filter[1]; ++r) {
        const int h = h0 + r * g.dilation[1];
        if (static_cast<unsigned>(h) >= static_cast<unsigned>(g.in[1])) continue;
        const scalar_t* const x_row =
            x + element_offset<NHWC>(at.n, c, g.C, g.in_size, position_in(g.in, d, h, 0));
        const int row_tap = (t * g.filter[1] + r) * g.filter[2];
#pragma unroll 2
        for (int s = 0; s < g.filter[2]; ++s) {
          const int column = w0 + s * g.dilation[2];
          if (static_cast<unsigned>(column) >= static_cast<unsigned>(g.in[2])) continue;
          float value[VEC];
          load_channels<scalar_t, VEC>(x_row + static_cast<int64_t>(column) * (NHWC ? g.C : 1),
                                       value);
          const int tap = row_tap + s;
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            const float weight =
                g.staged ? tile[tap * filters + lane + v]
                         : to_acc(w_block[static_cast<int64_t>(lane + v) * g.taps + tap]);
            acc[v] += weight * value[v];
          }
        }
      }
    }
    const int64_t position = position_in(g.out, at.at[0], at.at[1], at.at[2]);
    if (epilogue.any)
      apply_epilogue(epilogue, acc, [&](float(&r)[VEC]) {
        load_channels<scalar_t, VEC>(static_cast<const scalar_t*>(epilogue.residual) +
                                         element_offset<NHWC>(at.n, k, g.K, g.out_size, position),
                                     r);
      });
    store_channels<scalar_t, VEC>(
        y + element_offset<NHWC>(at.n, k, g.y_channels, g.out_size, position), acc);
  }
  if constexpr (STATS) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    block_moments<(NHWC ? 8 : 1), VEC, scalar_t>(
        min(filters, g.K - k0), static_cast<int>(end - begin), thread, kDepthwiseAnyThreads,
        [&](int channel, int i) -> const scalar_t* {
          const int64_t pixel = begin + i;
          if (NHWC) return y + pixel * g.K + k0 + channel;
          const PixelAt at = decode_pixel(g, pixel);
          return y + element_offset<NHWC>(at.n, k0 + channel, g.K, g.out_size,
                                          position_in(g.out, at.at[0], at.at[1], at.at[2]));
        },
        [&](int channel) { return moments.to + (k0 + channel) * moments.tiles + range; });
  }
}

}  // namespace fastconv::cuda
