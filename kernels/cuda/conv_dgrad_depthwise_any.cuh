// Gradient of a depthwise convolution's input, of every kind.
//
//   dx[n,c,d,h,w] = sum_{j<m} sum_{t,r,s} dy[n, c*m+j, (d+pd-t*dl)/st, ...] * w[c*m+j,t,r,s]
//
// over the taps whose quotients are whole and inside of dy; m = K / C.
//
// Mapping   as conv_fprop_depthwise_any_kernel, over the elements of dx. Gathered: along an axis
//           the taps that meet a position are r0, r0 + st/gcd, r0 + 2 st/gcd, ...
//           (gcd of stride and dilation), at positions of dy that fall by dl/gcd, so that only
//           those are visited: no zeros inserted, no division in the loops.
// Layouts, dtypes, padding, bytes   as in conv_fprop_depthwise_any.cuh, x and y exchanged. Not
//           measured on a GPU.
// Determinism   one thread per element, taps in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/depthwise_any.cuh"

namespace fastconv::cuda {

// The taps that meet position `at` of dx along one axis: `tap`, tap + tap_step, ..., at `from`,
// from - from_step, ... of dy.
struct TapWalk {
  int tap, tap_step, from, from_step;
};

__device__ __forceinline__ TapWalk tap_walk(const DepthwiseAny& g, int axis, int at) {
  const int stride = g.stride[axis], dilation = g.dilation[axis], shifted = at + g.padding[axis];
  int a = stride, b = dilation;  // their greatest common divisor ends in a
  while (b != 0) {
    const int rest = a % b;
    a = b;
    b = rest;
  }
  TapWalk walk{0, stride / a, 0, dilation / a};
  while (walk.tap < g.filter[axis] && walk.tap < walk.tap_step &&
         (shifted - walk.tap * dilation) % stride != 0)
    ++walk.tap;
  // No tap meets it: past the end.
  if (walk.tap == walk.tap_step) walk.tap = g.filter[axis];
  walk.from = (shifted - walk.tap * dilation) / stride;
  return walk;
}

template <class scalar_t, bool NHWC, int VEC>
__global__ void __launch_bounds__(kDepthwiseAnyThreads, 6)
    conv_dgrad_depthwise_any_kernel(DepthwiseAny g, const scalar_t* __restrict__ dy,
                                    const scalar_t* __restrict__ w, scalar_t* __restrict__ dx) {
  FC_DYN_SHARED(float, tile);  // [taps][filters]
  const int channels = blockDim.x * VEC;
  const int filters = channels * g.multiplier;
  uint32_t channel_block;
  const uint32_t range = g.blocks.divmod(blockIdx.x, channel_block);
  const int c0 = static_cast<int>(channel_block) * channels, lane = threadIdx.x * VEC;
  const int c = c0 + lane;
  const scalar_t* const w_block = w + static_cast<int64_t>(c0) * g.multiplier * g.taps;
  if (g.staged) stage_filters(tile, w_block, filters, g.taps, (g.C - c0) * g.multiplier);
  if (c >= g.C) return;

  const int64_t begin = range * g.range, end = min(begin + g.range, g.pixels);
#pragma unroll 1
  for (int64_t pixel = begin + threadIdx.y; pixel < end; pixel += blockDim.y) {
    const PixelAt at = decode_pixel(g, pixel);
    const TapWalk along_t = tap_walk(g, 0, at.at[0]);
    const TapWalk along_r = tap_walk(g, 1, at.at[1]);
    const TapWalk along_s = tap_walk(g, 2, at.at[2]);
    float acc[VEC] = {};
#pragma unroll 1
    for (int j = 0; j < g.multiplier; ++j) {
      const int filter = lane * g.multiplier + j;  // of the block
      const int64_t image =
          element_offset<NHWC>(at.n, c0 * g.multiplier + filter, g.K, g.out_size, 0);
#pragma unroll 1
      for (int t = along_t.tap, o = along_t.from; t < g.filter[0] && o >= 0;
           t += along_t.tap_step, o -= along_t.from_step) {
        if (o >= g.out[0]) continue;
#pragma unroll 1
        for (int r = along_r.tap, p = along_r.from; r < g.filter[1] && p >= 0;
             r += along_r.tap_step, p -= along_r.from_step) {
          if (p >= g.out[1]) continue;
          const int row_tap = (t * g.filter[1] + r) * g.filter[2];
          const int64_t row = position_in(g.out, o, p, 0);
#pragma unroll 1
          for (int s = along_s.tap, q = along_s.from; s < g.filter[2] && q >= 0;
               s += along_s.tap_step, q -= along_s.from_step) {
            if (q >= g.out[2]) continue;
            float value[VEC];
            load_channels<scalar_t, VEC>(dy + image + (row + q) * (NHWC ? g.K : 1), value);
            const int tap = row_tap + s;
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
              const float weight =
                  g.staged ? tile[tap * filters + filter + v]
                           : to_acc(w_block[static_cast<int64_t>(filter + v) * g.taps + tap]);
              acc[v] += weight * value[v];
            }
          }
        }
      }
    }
    const int64_t position = position_in(g.in, at.at[0], at.at[1], at.at[2]);
    store_channels<scalar_t, VEC>(dx + element_offset<NHWC>(at.n, c, g.C, g.in_size, position),
                                  acc);
  }
}

}  // namespace fastconv::cuda
