// Gradient of a depthwise convolution's input, NHWC, rank 2, R x R taps, stride 2 (stride 1 is
// conv_fprop_depthwise_nhwc_kernel with the filter mirrored).
//
//   dx[n,h,w,c] = sum_{r,s} dy[n, (h+pad-r)/2, (w+pad-s)/2, c] * w[c,r,s]   over whole quotients
//
// Mapping   gathered: a thread has 16 bytes of channels of one row (n,h) of dx and walks along W in
//           tiles of 4 that start at an even w+pad. The row's parity leaves the filter rows
//           r = (h+pad)%2, +2, ..., a column's parity every second tap: a quarter of the R*R taps
//           per element, no zeros are inserted and none multiplied. Per filter row 2+(R-1)/2
//           columns of dy are loaded, each used for every tap it meets.
// Filter, layouts, padding, occupancy   as in conv_fprop_depthwise_nhwc.cuh.
// Bytes     |dy| + |dx| + |w|; R*R/2 FLOPs per element of dx: bound by memory for every R and dtype
//           but 16-bit 7x7. Not measured on a GPU.
// Determinism   one thread per element, a fixed order of taps: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/depthwise_filter.cuh"

namespace fastconv::cuda {

template <class scalar_t, int R>
__global__ void __launch_bounds__(kDepthwiseThreads, (sizeof(scalar_t) == 4 ? 6 : 4))
    conv_dgrad_depthwise_nhwc_kernel(DepthwiseWindow g, const scalar_t* __restrict__ dy,
                                     const scalar_t* __restrict__ w, scalar_t* __restrict__ dx) {
  using Taps = DgradTaps<R, 4>;
  constexpr int kVector = ChannelVector<scalar_t>::kSize;
  FC_DYN_SHARED(float, filter);
  const int channels = blockDim.x * kVector, pitch = channels + kFilterSkew;
  uint32_t channel_block;
  const uint32_t spatial_block = g.channel_blocks.divmod(blockIdx.x, channel_block);
  const int c0 = static_cast<int>(channel_block) * channels;
  const scalar_t* const no_bias = nullptr;
  const bool finite = stage_filter<R>(
      filter, channels, pitch, w + static_cast<int64_t>(c0) * (R * R), no_bias, g.C - c0, false);
  const WindowJob job = window_job(g, spatial_block, c0 + threadIdx.x * kVector);
  if (!job.any) return;

  const scalar_t* const image = dy + static_cast<int64_t>(job.n) * g.in_h * g.in_w * g.C + job.c;
  scalar_t* const out_row =
      dx + (static_cast<int64_t>(job.n) * g.out_h + job.row) * g.out_w * g.C + job.c;
  const float* const taps = filter + threadIdx.x * kVector;
  const int parity = (job.row + g.pad_h) & 1;
  const RowWalk walk{(job.row + g.pad_h - parity) / 2, -1, parity, 2, (R + 1 - parity) / 2};
#pragma unroll 1
  for (int tile = job.first; tile < job.last; ++tile) {
    float acc[Taps::kTile][kVector] = {};
    const int at = tile * Taps::kTile - (g.pad_w & 1);
    const int column = (at + g.pad_w) / 2 - (R - 1) / 2;
    accumulate_tile<Taps>(acc, taps, pitch, image, g, walk, column, finite);
    store_tile<scalar_t>(out_row, acc, at, g, g.C);
  }
}

}  // namespace fastconv::cuda
