// Gradient of a depthwise convolution's filter, NCHW, rank 2, R x R taps, stride 1 or 2.
//
//   dw[c,r,s] = sum_{n,p,q} dy[n,c,p,q] * x[n,c, p*st-pad+r, q*st-pad+s]
//
// Mapping   a block has one channel, a range of its pieces (images, or strips of rows of one image)
//           and a range of columns. Per step it has a few pieces of x and dy in shared memory. A
//           thread keeps one column q for its life and the R*R sums in registers; it walks down
//           rows of x, each loaded at R neighbours and multiplied with the (R-1)/st+1 rows of dy
//           that it meets, which slide along in registers. At the end the threads' sums are added
//           by shuffles and warps in order; a second kernel (conv_wgrad_depthwise_sum.cuh) adds the
//           blocks'.
// Loads     16-byte cp.async whatever the alignment of a row (detail/plane_rows.cuh).
// Layouts   x [N,C,H,W], dy [N,C,P,Q], dw [C,R,S]. Dtypes f32, bf16, f16, summed in fp32.
// Padding   a row outside is skipped; a thread's sums of a tap whose column is outside are dropped,
//           for all of them are: neither contributes.
// Bytes     |x| + |dy| once, plus partial sums [splits][C*R*R]. 2*R*R FLOPs per element of dy.
//           Bound by memory but for 16-bit 7x7. Not measured on a GPU.
// Determinism   ranges depend on the problem and the SM count only; every sum has a fixed order:
//           bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/fast_divmod.cuh"
#include "detail/plane_rows.cuh"
#include "detail/scalar.cuh"

namespace fastconv::cuda {

struct DepthwiseWgradPlanes {
  int N, C;
  int in_h, in_w, out_h, out_w;
  int pad_h, pad_w;
  int images, tile_rows;          // of one step: several images only where tile_rows is out_h
  int tile_columns, walk, slots;  // a thread's rows; threads per column
  int steps;                      // of all images: strips * ceil(N / images)
  int range;                      // steps of one block
  int x_row_pitch, x_image_pitch, dy_row_pitch, dy_image_pitch, x_elements;  // staged
  FastDivmod channels, column_tiles, strips, walks, columns;
};

template <class scalar_t, int R, int STRIDE>
struct PlaneSums {
  static constexpr int kTail = (R - 1) / STRIDE;

  float acc[R][R];      // dw
  float dy[kTail + 1];  // rows p - kTail ... p of dy at the thread's column
  bool inside[R];       // the tap's column exists

  // One row of x with the rows of dy that it meets: taps r = step, step + STRIDE, ...
  // GUARDED: of the dy rows only those from `first` to `last` of the window exist.
  template <bool GUARDED>
  __device__ __forceinline__ void add_row(const scalar_t* in, int step, int first, int last) {
    float value[R];
#pragma unroll
    for (int s = 0; s < R; ++s) value[s] = inside[s] ? to_acc(in[s]) : 0.f;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r % STRIDE != step) continue;
      const int slot = kTail - r / STRIDE;
      if (GUARDED && (slot < first || slot > last)) continue;
#pragma unroll
      for (int s = 0; s < R; ++s) acc[r][s] += dy[slot] * value[s];
    }
  }
};

// partial [splits][C][R*R], split = range * column_tiles + column tile.
// Shared memory: x [images][rows][row_pitch], then dy the same way; at the end [warps][R*R].
template <class scalar_t, int R, int STRIDE>
__global__ void __launch_bounds__(128, (R == 3   ? 10
                                        : R == 5 ? 7
                                                 : 4))
    conv_wgrad_depthwise_nchw_kernel(DepthwiseWgradPlanes g, const scalar_t* __restrict__ x,
                                     const scalar_t* __restrict__ dy, float* __restrict__ partial) {
  using Sums = PlaneSums<scalar_t, R, STRIDE>;
  constexpr int kTail = Sums::kTail;
  FC_DYN_SHARED(scalar_t, staged_x);
  scalar_t* const staged_dy = staged_x + g.x_elements;

  uint32_t channel, column_tile;
  const uint32_t split = g.channels.divmod(blockIdx.x, channel);
  const uint32_t range = g.column_tiles.divmod(split, column_tile);
  const int c = static_cast<int>(channel);
  uint32_t own_column;
  const int slot = static_cast<int>(g.columns.divmod(threadIdx.x, own_column));
  const int q_begin = static_cast<int>(column_tile) * g.tile_columns;
  const int q_end = min(q_begin + g.tile_columns, g.out_w);
  const int q = q_begin + static_cast<int>(own_column);
  const bool busy = slot < g.slots && q < q_end;
  const int column = q * STRIDE - g.pad_w;
  const bool full = g.tile_columns >= g.out_w;
  const int w0 = full ? 0 : max(q_begin * STRIDE - g.pad_w, 0);
  const int w1 = full ? g.in_w : min((q_end - 1) * STRIDE - g.pad_w + R, g.in_w);
  const int64_t in_size = static_cast<int64_t>(g.in_h) * g.in_w;
  const int64_t out_size = static_cast<int64_t>(g.out_h) * g.out_w;

  Sums sums;
#pragma unroll
  for (int s = 0; s < R; ++s) {
    sums.inside[s] = static_cast<unsigned>(column + s) < static_cast<unsigned>(g.in_w);
#pragma unroll
    for (int r = 0; r < R; ++r) sums.acc[r][s] = 0.f;
  }

  const int step_end = min(static_cast<int>(range + 1) * g.range, g.steps);
#pragma unroll 1
  for (int step = static_cast<int>(range) * g.range; step < step_end; ++step) {
    uint32_t strip;
    const int n0 = static_cast<int>(g.strips.divmod(static_cast<uint32_t>(step), strip)) * g.images;
    const int images = min(g.images, g.N - n0);
    const int p0 = static_cast<int>(strip) * g.tile_rows, p1 = min(p0 + g.tile_rows, g.out_h);
    const int h0 = max(p0 * STRIDE - g.pad_h, 0);
    const int h1 = min((p1 - 1) * STRIDE - g.pad_h + R, g.in_h);
    const int64_t plane = static_cast<int64_t>(n0) * g.C + c;
    const scalar_t* const x_from = x + plane * in_size + static_cast<int64_t>(h0) * g.in_w + w0;
    const scalar_t* const dy_from =
        dy + plane * out_size + static_cast<int64_t>(p0) * g.out_w + q_begin;
    const RowBox x_box{phase_of(x_from), g.x_row_pitch, g.x_image_pitch};
    const RowBox dy_box{phase_of(dy_from), g.dy_row_pitch, g.dy_image_pitch};
    __syncthreads();  // the last step's rows have been read
    copy_box(staged_x, x_box, x_from, g.C * in_size, g.in_w, images, h1 - h0, w1 - w0, threadIdx.x,
             blockDim.x);
    copy_box(staged_dy, dy_box, dy_from, g.C * out_size, g.out_w, images, p1 - p0, q_end - q_begin,
             threadIdx.x, blockDim.x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    const int items = images * static_cast<int>(g.walks.divisor);
#pragma unroll 1
    for (int item = slot; item < items && busy; item += g.slots) {
      uint32_t walk;
      const int image = static_cast<int>(g.walks.divmod(static_cast<uint32_t>(item), walk));
      const int begin = p0 + static_cast<int>(walk) * g.walk, rows = min(g.walk, p1 - begin);
      int h = begin * STRIDE - g.pad_h;
      const scalar_t* in = staged_x + x_box.at(image, h - h0, column - w0);
      const scalar_t* grad = staged_dy + dy_box.at(image, begin - p0, q - q_begin);
#pragma unroll
      for (int j = 0; j <= kTail; ++j) sums.dy[j] = 0.f;
#pragma unroll 1
      for (int i = 0; i < rows + kTail; ++i) {
#pragma unroll
        for (int j = 0; j < kTail; ++j) sums.dy[j] = sums.dy[j + 1];
        if (i < rows) sums.dy[kTail] = to_acc(*grad);
        grad += g.dy_row_pitch;
        // Slot j has row i - kTail + j of the walk.
        const int first = kTail - i, last = kTail + rows - 1 - i;
        const bool whole = first <= 0 && last >= kTail;
#pragma unroll
        for (int part = 0; part < STRIDE; ++part, ++h, in += g.x_row_pitch) {
          if (h < 0 || h >= h1) continue;
          if (whole)
            sums.template add_row<false>(in, part, 0, kTail);
          else
            sums.template add_row<true>(in, part, first, last);
        }
      }
    }
  }

  float* const warp_sums = reinterpret_cast<float*>(staged_x);  // [warps][R*R]
  __syncthreads();
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int s = 0; s < R; ++s) {
      float sum = busy && sums.inside[s] ? sums.acc[r][s] : 0.f;
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      if (threadIdx.x % 32 == 0) warp_sums[warp * (R * R) + r * R + s] = sum;
    }
  __syncthreads();
  if (threadIdx.x < R * R) {
    float sum = 0.f;
    for (int i = 0; i < warps; ++i) sum += warp_sums[i * (R * R) + threadIdx.x];
    partial[(static_cast<int64_t>(split) * g.C + c) * (R * R) + threadIdx.x] = sum;
  }
}

}  // namespace fastconv::cuda
