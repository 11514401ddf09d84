// Depthwise convolution, NCHW, rank 2, R x R taps known at compile time, stride 1 or 2.
//
//   y[n,c,p,q] = bias[c] + sum_{r,s} x[n,c, p*st-pad+r, q*st-pad+s] * w[c,r,s]
//
// With the taps mirrored and pad' = R-1-pad it is also dgrad of stride 1: dx from dy.
//
// Mapping   a block has a box of x in shared memory: whole neighbouring planes (n,c) where they are
//           small, else a strip of rows (of columns too, if a row is very long) with its halo. A
//           thread has one column q (two of a 16-bit type, whose bytes are half as many per
//           instruction) and the R*R weights in registers and walks down P: per input row it loads
//           the R neighbours from shared memory and adds them to the (R-1)/st+1 outputs that the
//           row meets, which slide along in registers.
// Loads     16-byte cp.async whatever the alignment of a row (detail/plane_rows.cuh); stores of
//           neighbouring threads are neighbours.
// Layouts   x [N,C,H,W], w [C,R,S], y [N,C,P,Q]. Dtypes f32, bf16, f16, summed in fp32.
// Padding   never read. A row outside is skipped. A column outside is multiplied as a zero where
//           all weights are finite, which adds exactly nothing; else every tap is guarded.
// Bytes     |x| + |y| + |w|; halo rows of strips are read twice, from L2. 2*R*R FLOPs per output.
//           Bound by memory but for 16-bit 7x7. Not measured on a GPU.
// Statistics    STATS: of y, per plane of a block (detail/block_moments.cuh); kernels of their own,
//           because it would take registers from the others.
// Determinism   one thread per output, rows in order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/block_moments.cuh"
#include "detail/depthwise_planes.cuh"
#include "detail/epilogue.cuh"

namespace fastconv::cuda {

// Columns of `out` that a thread walks down.
template <class scalar_t>
constexpr int kPlaneColumns = sizeof(scalar_t) == 2 ? 2 : 1;

template <int R, bool STATS>
constexpr int kPlaneBlocksPerSm = R == 3   ? (STATS ? 10 : 12)
                                  : R == 5 ? 7
                                           : 5;

// With `out` a slice of more channels: the elements between two of its images, else 0, and
// divisions by the elements of an image, less and with them; and one by the columns of a tile.
struct DepthwiseSlicedPlanes : DepthwisePlanes {
  int64_t skipped;
  FastDivmod64 by_image, by_sliced_image;
  FastDivmod by_columns;
};

// One output by its definition, from the staged box: for weights that are not finite.
template <int R, class scalar_t>
__device__ __forceinline__ float guarded_sum(const scalar_t* in, int row_pitch, const float* taps,
                                             int h, int h_end, int column, int in_w) {
  float sum = taps[R * R];
#pragma unroll 1
  for (int r = 0; r < R; ++r) {
    if (h + r < 0 || h + r >= h_end) continue;
#pragma unroll 1
    for (int s = 0; s < R; ++s)
      if (static_cast<unsigned>(column + s) < static_cast<unsigned>(in_w))
        sum += taps[r * R + s] * to_acc(in[r * row_pitch + s]);
  }
  return sum;
}

// A thread's `count` neighbouring outputs of a row, stored with the epilogue. Where their residual
// lies follows from the address alone, so that nothing is kept in registers for it.
template <class scalar_t, int COLUMNS>
__device__ __forceinline__ void store_columns(const DepthwiseSlicedPlanes& g,
                                              const StoreEpilogue<float>& epilogue,
                                              float (&v)[COLUMNS], int count, const scalar_t* y,
                                              scalar_t* to) {
  if (epilogue.any)
    apply_epilogue(epilogue, v, [&](float(&r)[COLUMNS]) {
      int64_t at = to - y;
      if (g.skipped != 0) at -= static_cast<int64_t>(g.by_sliced_image.div(at)) * g.skipped;
      const scalar_t* const from = static_cast<const scalar_t*>(epilogue.residual) + at;
#pragma unroll
      for (int k = 0; k < COLUMNS; ++k)
        if (k == 0 || k < count) r[k] = to_acc(from[k]);
    });
#pragma unroll
  for (int k = 0; k < COLUMNS; ++k)
    if (k == 0 || k < count) to[k] = from_acc<scalar_t>(v[k]);
}

template <class scalar_t, int R, int STRIDE, bool STATS>
__global__ void __launch_bounds__(kDepthwisePlaneThreads, (kPlaneBlocksPerSm<R, STATS>))
    conv_fprop_depthwise_nchw_kernel(DepthwiseSlicedPlanes g, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ w,
                                     const scalar_t* __restrict__ bias,
                                     const StoreEpilogue<float> epilogue,
                                     const MomentTiles<float> moments, scalar_t* __restrict__ y) {
  constexpr int kTaps = R * R;
  constexpr int kTail = (R - 1) / STRIDE;  // outputs beyond the newest that an input row meets
  constexpr int kColumns = kPlaneColumns<scalar_t>;
  constexpr int kValues = (kColumns - 1) * STRIDE + R;
  FC_DYN_SHARED(float, filter);  // [planes][kTaps + 1], then the box of x
  scalar_t* const staged =
      reinterpret_cast<scalar_t*>(filter + (g.planes * (kTaps + 1) + 3) / 4 * 4);

  const PlaneTile tile = plane_tile(g, blockIdx.x);
  const int h0 = max(tile.row * STRIDE - g.pad_h, 0);
  const int h1 = min((tile.row_end - 1) * STRIDE - g.pad_h + R, g.in_h);
  // Whole rows where the tile is as wide as the plane: they are one run.
  const bool full = g.tile_columns >= g.out_w;
  const int w0 = full ? 0 : max(tile.column * STRIDE - g.pad_w, 0);
  const int w1 = full ? g.in_w : min((tile.column_end - 1) * STRIDE - g.pad_w + R, g.in_w);
  const int64_t in_size = static_cast<int64_t>(g.in_h) * g.in_w;
  const scalar_t* const from = x + tile.plane * in_size + static_cast<int64_t>(h0) * g.in_w + w0;
  const RowBox box{phase_of(from), g.row_pitch, g.plane_pitch};
  copy_box(staged, box, from, in_size, g.in_w, tile.planes, h1 - h0, w1 - w0, threadIdx.x,
           blockDim.x);
  cp_async_commit();
  bool finite = stage_plane_filters<kTaps>(filter, w, bias, tile, g.C, g.mirrored);
  cp_async_wait<0>();
  finite = __syncthreads_or(!finite) == 0;

  const int items = tile.planes * static_cast<int>(g.walks.divisor * g.columns.divisor);
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const PlaneWalk walk = plane_walk<kColumns>(g, tile, item);
    if (!walk.any) continue;
    const int column = walk.column * STRIDE - g.pad_w;
    const int columns =
        tile.column_end - walk.column;  // of them kColumns at most are this thread's
    const float* const taps = filter + walk.plane * (kTaps + 1);
    int h = walk.row * STRIDE - g.pad_h;
    const scalar_t* in = staged + box.at(walk.plane, h - h0, column - w0);
    scalar_t* out = y + ((tile.plane + walk.plane) * g.out_h + walk.row) * g.out_w + walk.column;
    if (g.skipped != 0) out += static_cast<int64_t>(g.by_image.div(out - y)) * g.skipped;
    if (!finite) {
#pragma unroll 1
      for (int row = walk.row; row < walk.row_end; ++row) {
#pragma unroll 1
        for (int k = 0; k < kColumns && k < columns; ++k) {
          float value[1] = {guarded_sum<R>(in + k * STRIDE, box.row_pitch, taps, h, h1,
                                           column + k * STRIDE, g.in_w)};
          store_columns(g, epilogue, value, 1, y, out + k);
        }
        h += STRIDE;
        in += STRIDE * box.row_pitch;
        out += g.out_w;
      }
      continue;
    }

    float weight[R][R];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < R; ++s) weight[r][s] = taps[r * R + s];
    const float start = taps[kTaps];
    float acc[kColumns][kTail + 1];
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
#pragma unroll
      for (int j = 0; j <= kTail; ++j) acc[k][j] = start;
    // After the input rows of a step, output row `row` is complete.
#pragma unroll 1
    for (int row = walk.row - kTail; row < walk.row_end; ++row) {
#pragma unroll
      for (int step = 0; step < STRIDE; ++step, ++h, in += box.row_pitch) {
        if (h < 0 || h >= h1) continue;
        float value[kValues];
#pragma unroll
        for (int v = 0; v < kValues; ++v)
          value[v] = column + v >= 0 && column + v < w1 ? to_acc(in[v]) : 0.f;
#pragma unroll
        for (int r = step; r < R; r += STRIDE)
#pragma unroll
          for (int s = 0; s < R; ++s)
#pragma unroll
            for (int k = 0; k < kColumns; ++k)
              acc[k][kTail - r / STRIDE] += weight[r][s] * value[k * STRIDE + s];
      }
      if (row >= walk.row) {
        float value[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) value[k] = acc[k][0];
        store_columns(g, epilogue, value, columns, y, out);
        out += g.out_w;
      }
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
#pragma unroll
        for (int j = 0; j < kTail; ++j) acc[k][j] = acc[k][j + 1];
        acc[k][kTail] = start;
      }
    }
  }
  if constexpr (STATS) {
    const int width = tile.column_end - tile.column;
    const scalar_t* const first = y + (tile.plane * g.out_h + tile.row) * g.out_w + tile.column;
    const int64_t out_size = static_cast<int64_t>(g.out_h) * g.out_w;
    const uint32_t tiles_of_plane = g.row_tiles.divisor * g.column_tiles.divisor;
    block_moments<1, 1, scalar_t>(
        tile.planes, (tile.row_end - tile.row) * g.tile_columns, threadIdx.x, blockDim.x,
        [&](int plane, int i) -> const scalar_t* {
          uint32_t column;
          const uint32_t row = g.by_columns.divmod(i, column);
          if (static_cast<int>(column) >= width) return nullptr;
          return first + plane * out_size + static_cast<int64_t>(row) * g.out_w + column;
        },
        [&](int plane) {
          const int64_t n = (tile.plane + plane) / g.C, c = (tile.plane + plane) - n * g.C;
          return moments.to + c * moments.tiles + n * tiles_of_plane + blockIdx.x % tiles_of_plane;
        });
  }
}

}  // namespace fastconv::cuda
