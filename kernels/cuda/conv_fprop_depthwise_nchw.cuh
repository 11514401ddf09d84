// Depthwise convolution, NCHW, rank 2, R x R taps known at compile time, stride 1 or 2.
//
//   y[n,c,p,q] = bias[c] + sum_{r,s} x[n,c, p*st-pad+r, q*st-pad+s] * w[c,r,s]
//
// With the taps mirrored and pad' = R-1-pad it is also dgrad of stride 1: dx from dy.
//
// Mapping   a block has a box of x in shared memory: whole neighbouring planes (n,c) where they are
//           small, else a strip of rows (of columns too, if a row is very long) with its halo. A
//           thread has one column q and the R*R weights in registers and walks down P: per input
//           row it loads R neighbours from shared memory and adds them to the (R-1)/st+1 outputs
//           that the row meets, which slide along in registers.
// Loads     16-byte cp.async whatever the alignment of a row (detail/plane_rows.cuh); stores of
//           neighbouring threads are neighbours.
// Layouts   x [N,C,H,W], w [C,R,S], y [N,C,P,Q]. Dtypes f32, bf16, f16, summed in fp32.
// Padding   a row outside is skipped. A column outside counts as a zero times a weight set to zero:
//           it adds exactly nothing.
// Bytes     |x| + |y| + |w|; halo rows of strips are read twice, from L2. 2*R*R FLOPs per output.
//           Bound by memory but for 16-bit 7x7. Not measured on a GPU.
// Determinism   one thread per output, rows in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/depthwise_planes.cuh"

namespace fastconv::cuda {

template <int R>
constexpr int kPlaneBlocksPerSm = R == 3   ? 12
                                  : R == 5 ? 8
                                           : 5;

template <class scalar_t, int R, int STRIDE>
__global__ void __launch_bounds__(kDepthwisePlaneThreads, (kPlaneBlocksPerSm<R>))
    conv_fprop_depthwise_nchw_kernel(DepthwisePlanes g, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ w,
                                     const scalar_t* __restrict__ bias, scalar_t* __restrict__ y) {
  constexpr int kTaps = R * R;
  constexpr int kTail = (R - 1) / STRIDE;  // outputs beyond the newest that an input row meets
  FC_DYN_SHARED(float, filter);            // [planes][kTaps + 1], then the box of x
  scalar_t* const staged =
      reinterpret_cast<scalar_t*>(filter + (g.planes * (kTaps + 1) + 3) / 4 * 4);

  const PlaneTile tile = plane_tile(g, blockIdx.x);
  const int h0 = max(tile.row * STRIDE - g.pad_h, 0);
  const int h1 = min((tile.row_end - 1) * STRIDE - g.pad_h + R, g.in_h);
  // Whole rows where the tile is as wide as the plane: they are one run.
  const bool full = g.columns.divisor >= static_cast<uint32_t>(g.out_w);
  const int w0 = full ? 0 : max(tile.column * STRIDE - g.pad_w, 0);
  const int w1 = full ? g.in_w : min((tile.column_end - 1) * STRIDE - g.pad_w + R, g.in_w);
  const int64_t in_size = static_cast<int64_t>(g.in_h) * g.in_w;
  const scalar_t* const from = x + tile.plane * in_size + static_cast<int64_t>(h0) * g.in_w + w0;
  const RowBox box{phase_of(from), g.row_pitch, g.plane_pitch};
  copy_box(staged, box, from, in_size, g.in_w, tile.planes, h1 - h0, w1 - w0, threadIdx.x,
           blockDim.x);
  cp_async_commit();
  stage_plane_filters<kTaps>(filter, w, bias, tile, g.C, g.mirrored);
  cp_async_wait<0>();
  __syncthreads();

  const int items = tile.planes * static_cast<int>(g.walks.divisor * g.columns.divisor);
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const PlaneWalk walk = plane_walk(g, tile, item);
    if (!walk.any) continue;
    const int column = walk.column * STRIDE - g.pad_w;
    const float* const taps = filter + walk.plane * (kTaps + 1);
    float weight[R][R];
#pragma unroll
    for (int s = 0; s < R; ++s) {
      const bool inside = static_cast<unsigned>(column + s) < static_cast<unsigned>(g.in_w);
#pragma unroll
      for (int r = 0; r < R; ++r) weight[r][s] = inside ? taps[r * R + s] : 0.f;
    }
    const float start = taps[kTaps];
    float acc[kTail + 1];
#pragma unroll
    for (int j = 0; j <= kTail; ++j) acc[j] = start;

    scalar_t* out = y + ((tile.plane + walk.plane) * g.out_h + walk.row) * g.out_w + walk.column;
    // After the input rows of step i, output row walk.row + i - kTail is complete.
    int h = walk.row * STRIDE - g.pad_h;
    const scalar_t* in = staged + box.at(walk.plane, h - h0, column - w0);
#pragma unroll 1
    for (int row = walk.row - kTail; row < walk.row_end; ++row) {
#pragma unroll
      for (int step = 0; step < STRIDE; ++step, ++h, in += box.row_pitch) {
        if (h < 0 || h >= h1) continue;
        float value[R];
#pragma unroll
        for (int s = 0; s < R; ++s)
          value[s] = static_cast<unsigned>(column + s) < static_cast<unsigned>(g.in_w)
                         ? to_acc(in[s])
                         : 0.f;
#pragma unroll
        for (int r = step; r < R; r += STRIDE)
#pragma unroll
          for (int s = 0; s < R; ++s) acc[kTail - r / STRIDE] += weight[r][s] * value[s];
      }
      if (row >= walk.row) {
        *out = from_acc<scalar_t>(acc[0]);
        out += g.out_w;
      }
#pragma unroll
      for (int j = 0; j < kTail; ++j) acc[j] = acc[j + 1];
      acc[kTail] = start;
    }
  }
}

}  // namespace fastconv::cuda
