// Gradient of a depthwise convolution's filter, of every kind.
//
//   dw[k,t,r,s] = sum_{n,o,p,q} dy[n,k,o,p,q] * x[n, k/m, o*st-pd+t*dl, ...],  m = K / C
//
// Mapping   a block has some filters, TAPS_PER_BLOCK of their taps and a range of the outputs of
//           all images. blockDim = (lanes along K, slots): a slot takes every slots-th output,
//           loads its dy once and one x per tap. NCHW: lanes = 1, slots along q. The slots are
//           added in shared memory, by halves; a second kernel (conv_wgrad_depthwise_sum.cuh) adds
//           ranges. VEC as in conv_fprop_depthwise_any.cuh.
// Layouts   NCHW, NHWC. Ranks 1 to 3. Dtypes f32, bf16, f16, summed in fp32.
// Padding   a tap outside of x is skipped: neither read nor multiplied.
// Bytes     x and dy once per TAPS_PER_BLOCK taps, plus the partial sums, 8 * splits * |dw|. Bound
//           by load issue. Not measured on a GPU.
// Determinism   ranges depend on the problem and the SM count only; every sum has a fixed order:
//           bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/depthwise_any.cuh"

namespace fastconv::cuda {

constexpr int kTapsPerBlock = 8;

// partial [splits][K][taps]; blockDim.y is a power of two; shared memory [slots][lanes * VEC]
template <class scalar_t, bool NHWC, int VEC>
__global__ void __launch_bounds__(kDepthwiseAnyThreads, (VEC > 1 ? 4 : 6))
    conv_wgrad_depthwise_any_kernel(DepthwiseAny g, FastDivmod tap_blocks,
                                    const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                    float* __restrict__ partial) {
  FC_DYN_SHARED(float, sums);
  FC_SHARED(int, tap_at, [kTapsPerBlock][3]);  // dilated
  const int filters = blockDim.x * VEC;
  uint32_t channel_block, tap_block;
  const uint32_t range = tap_blocks.divmod(g.blocks.divmod(blockIdx.x, channel_block), tap_block);
  const int k0 = static_cast<int>(channel_block) * filters, lane = threadIdx.x * VEC;
  const int k = k0 + lane;
  const int c = VEC > 1 ? k : k / g.multiplier;
  const int tap0 = static_cast<int>(tap_block) * kTapsPerBlock;
  const int taps = min(kTapsPerBlock, g.taps - tap0);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread < taps) {
    const int tap = tap0 + thread, row = tap / g.filter[2], t = row / g.filter[1];
    tap_at[thread][0] = t * g.dilation[0];
    tap_at[thread][1] = (row - t * g.filter[1]) * g.dilation[1];
    tap_at[thread][2] = (tap - row * g.filter[2]) * g.dilation[2];
  }
  __syncthreads();

  float acc[kTapsPerBlock][VEC] = {};
  if (k < g.K) {
    const int64_t begin = range * g.range, end = min(begin + g.range, g.pixels);
#pragma unroll 1
    for (int64_t pixel = begin + threadIdx.y; pixel < end; pixel += blockDim.y) {
      const PixelAt at = decode_pixel(g, pixel);
      const int d0 = at.at[0] * g.stride[0] - g.padding[0];
      const int h0 = at.at[1] * g.stride[1] - g.padding[1];
      const int w0 = at.at[2] * g.stride[2] - g.padding[2];
      float gradient[VEC];
      load_channels<scalar_t, VEC>(
          dy + element_offset<NHWC>(at.n, k, g.K, g.out_size,
                                    position_in(g.out, at.at[0], at.at[1], at.at[2])),
          gradient);
#pragma unroll
      for (int j = 0; j < kTapsPerBlock; ++j) {
        if (j >= taps) break;
        const int d = d0 + tap_at[j][0], h = h0 + tap_at[j][1], column = w0 + tap_at[j][2];
        if (static_cast<unsigned>(d) >= static_cast<unsigned>(g.in[0]) ||
            static_cast<unsigned>(h) >= static_cast<unsigned>(g.in[1]) ||
            static_cast<unsigned>(column) >= static_cast<unsigned>(g.in[2]))
          continue;
        float value[VEC];
        load_channels<scalar_t, VEC>(
            x + element_offset<NHWC>(at.n, c, g.C, g.in_size, position_in(g.in, d, h, column)),
            value);
#pragma unroll
        for (int v = 0; v < VEC; ++v) acc[j][v] += gradient[v] * value[v];
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kTapsPerBlock; ++j) {
    if (j >= taps) break;
    float* const own = sums + threadIdx.y * filters + lane;
#pragma unroll
    for (int v = 0; v < VEC; ++v) own[v] = acc[j][v];
    __syncthreads();
#pragma unroll 1
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      if (static_cast<int>(threadIdx.y) < half)
#pragma unroll
        for (int v = 0; v < VEC; ++v) own[v] += own[half * filters + v];
      __syncthreads();
    }
    if (threadIdx.y == 0 && k < g.K)
#pragma unroll
      for (int v = 0; v < VEC; ++v)
        partial[(static_cast<int64_t>(range) * g.K + k + v) * g.taps + tap0 + j] = own[v];
    __syncthreads();
  }
}

}  // namespace fastconv::cuda
