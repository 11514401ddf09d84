// Gradient of a depthwise convolution's input, NCHW, rank 2, R x R taps, stride 2 (stride 1 is
// conv_fprop_depthwise_nchw_kernel with the filter mirrored).
//
//   dx[n,c,h,w] = sum_{r,s} dy[n,c, (h+pad-r)/2, (w+pad-s)/2] * w[c,r,s]   over whole quotients
//
// Mapping   a block has a box of dy in shared memory, as conv_fprop_depthwise_nchw_kernel has of x.
//           A thread has one column w of dx, whose parity leaves every second tap s, and walks down
//           the rows of dy: each is loaded at the (R+1)/2 columns that it needs and added to the R
//           rows of dx that it meets, which slide along in registers; two are complete per step. No
//           zeros are inserted and none multiplied.
// Layouts, loads, padding   as in conv_fprop_depthwise_nchw.cuh, dy and dx for x and y. A tile's
//           rows are pairs (h+pad even, odd).
// Bytes     |dy| + |dx| + |w|; R*R/2 FLOPs per element of dx: bound by memory. Not measured on a
//           GPU.
// Determinism   one thread per element, rows in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/depthwise_planes.cuh"

namespace fastconv::cuda {

// out_h, tile_rows, walk count pairs of rows of dx; height is dx's own.
template <class scalar_t, int R>
__global__ void __launch_bounds__(kDepthwisePlaneThreads, (R == 3 ? 12 : 8))
    conv_dgrad_depthwise_nchw_kernel(DepthwisePlanes g, int height, const scalar_t* __restrict__ dy,
                                     const scalar_t* __restrict__ w, scalar_t* __restrict__ dx) {
  constexpr int kTaps = R * R;
  constexpr int kTail = (R - 1) / 2;  // rows and columns of dy before the newest that count
  FC_DYN_SHARED(float, filter);       // [planes][kTaps + 1], then the box of dy
  scalar_t* const staged =
      reinterpret_cast<scalar_t*>(filter + (g.planes * (kTaps + 1) + 3) / 4 * 4);

  const PlaneTile tile = plane_tile(g, blockIdx.x);
  // Pair `a` is the rows 2a - pad%2 and the next; it meets rows a + pad/2 - kTail ... a + pad/2.
  const int first_row = g.pad_h / 2;
  const int p0 = max(tile.row + first_row - kTail, 0);
  const int p1 = min(tile.row_end + first_row, g.in_h);
  const bool full = g.tile_columns >= g.out_w;
  const int q0 = full ? 0 : max((tile.column + g.pad_w) / 2 - kTail, 0);
  const int q1 = full ? g.in_w : min((tile.column_end - 1 + g.pad_w) / 2 + 1, g.in_w);
  const int64_t in_size = static_cast<int64_t>(g.in_h) * g.in_w;
  const scalar_t* const from = dy + tile.plane * in_size + static_cast<int64_t>(p0) * g.in_w + q0;
  const RowBox box{phase_of(from), g.row_pitch, g.plane_pitch};
  copy_box(staged, box, from, in_size, g.in_w, tile.planes, p1 - p0, q1 - q0, threadIdx.x,
           blockDim.x);
  cp_async_commit();
  const scalar_t* const no_bias = nullptr;
  stage_plane_filters<kTaps>(filter, w, no_bias, tile, g.C, false);
  cp_async_wait<0>();
  __syncthreads();

  const int items = tile.planes * static_cast<int>(g.walks.divisor * g.columns.divisor);
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const PlaneWalk walk = plane_walk<1>(g, tile, item);
    if (!walk.any) continue;
    const int parity = (walk.column + g.pad_w) & 1;
    const int column = (walk.column + g.pad_w - parity) / 2;  // of dy, for tap s = parity
    const float* const taps = filter + walk.plane * (kTaps + 1);
    float weight[R][kTail + 1];
#pragma unroll
    for (int m = 0; m <= kTail; ++m) {
      const int s = parity + 2 * m;
      const bool inside =
          s < R && static_cast<unsigned>(column - m) < static_cast<unsigned>(g.in_w);
#pragma unroll
      for (int r = 0; r < R; ++r) weight[r][m] = inside ? taps[r * R + s] : 0.f;
    }
    float acc[R] = {};  // rows 2p - pad ... 2p - pad + R - 1 of dx, p the newest row of dy
    int p = walk.row + first_row - kTail;
    int h = 2 * p - g.pad_h;
    const scalar_t* in = staged + box.at(walk.plane, p - p0, column - q0);
    scalar_t* out = dx + ((tile.plane + walk.plane) * height + h) * g.out_w + walk.column;
#pragma unroll 1
    for (int pair = walk.row - kTail; pair < walk.row_end; ++pair) {
      if (p >= 0 && p < p1) {
        float value[kTail + 1];
#pragma unroll
        for (int m = 0; m <= kTail; ++m)
          value[m] = static_cast<unsigned>(column - m) < static_cast<unsigned>(g.in_w) &&
                             parity + 2 * m < R
                         ? to_acc(in[-m])
                         : 0.f;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int m = 0; m <= kTail; ++m) acc[r] += weight[r][m] * value[m];
      }
      if (pair >= walk.row) {
        if (h >= 0 && h < height) out[0] = from_acc<scalar_t>(acc[0]);
        if (h + 1 >= 0 && h + 1 < height) out[g.out_w] = from_acc<scalar_t>(acc[1]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) acc[r] = r + 2 < R ? acc[r + 2] : 0.f;
      ++p;
      h += 2;
      in += box.row_pitch;
      out += 2 * static_cast<int64_t>(g.out_w);
    }
  }
}

}  // namespace fastconv::cuda
