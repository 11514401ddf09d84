// Backward of maximum, sum and Lp (powers 1 and 2) pooling of NCHW, rank 2, square windows.
//
//   maximum  dx[n,c,h,w] = sum of dy over the outputs whose index names this element
//   sum      dx = sum over the outputs that reach it of dy / (elements counted)
//   Lp       dx = x^(p-1) * sum over the outputs that reach it of dy y^(1-p) (/ counted * whole)
//
// Mapping   a block has the rows of dy that reach its rows of dx in shared memory as fp32, already
//           divided, and the byte indices beside them; both come as runs of 16-byte pieces whatever
//           their alignment. A gather: a thread adds up one element of dx at a time. dx is staged
//           in shared memory and leaves as a run. No atomics.
// Layouts   dx, x [N,C,H,W], dy, y, index [N,C,P,Q]; any alignment; any stride and padding,
//           dilation 1. Dtypes f32, bf16, f16, in fp32.
// Bytes     dy (with the index, or x and y) and dx from DRAM. (K/stride)^2 windows per element, at
//           about eight instructions: DRAM is the bound for 2x2/2, instructions from about 3x3/2
//           in 16-bit types. Not measured on a GPU.
// Determinism   one thread per element, windows in row-major order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "detail/pool_planes.cuh"
#include "detail/pool_runs.cuh"

namespace fastconv::cuda {

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolPlanesThreads, 6)
    pool_dgrad_planes_kernel(const PoolPlanes<scalar_t> g) {
  constexpr bool kMax = KIND == PoolKind::kMax;
  FC_DYN_SHARED(unsigned char, shared);
  uint32_t strip;
  const int plane0 = static_cast<int>(g.strips.divmod(blockIdx.x, strip)) * g.images;
  const int images = min(g.images, g.planes - plane0);
  const int h0 = static_cast<int>(strip) * g.rows, rows = min(g.rows, g.in_h - h0);
  const auto first_output = [&](int place) {
    return static_cast<int>(g.by_stride.div(max(place - g.kernel, -1) + g.stride));
  };
  const auto end_output = [&](int place, int out) {
    return min(static_cast<int>(g.by_stride.div(place)) + 1, out);
  };
  const int p_begin = min(first_output(h0 + g.pad_h), g.out_h);
  const int p_end = max(p_begin, end_output(h0 + rows - 1 + g.pad_h, g.out_h));
  const int in_size = g.in_h * g.in_w, out_size = g.out_h * g.out_w;
  const int64_t y_begin = static_cast<int64_t>(plane0) * out_size + p_begin * g.out_w;
  const int y_length = (images - 1) * out_size + (p_end - p_begin) * g.out_w;
  const int64_t x_begin = static_cast<int64_t>(plane0) * in_size + h0 * g.in_w;
  const int x_length = (images - 1) * in_size + rows * g.in_w;

  float* const slopes = reinterpret_cast<float*>(shared);                 // [images][rows][Q]
  uint8_t* const taps = shared + g.index_stage;                           // [images][rows][Q]
  scalar_t* const stage = reinterpret_cast<scalar_t*>(shared + g.stage);  // [images][rows][W]
  const uint8_t* const index = static_cast<const uint8_t*>(g.index) + y_begin;
  if (kMax) load_run(taps, index, y_length, kPoolPlanesThreads);
  cp_async_commit();
  over_run(g.dy + y_begin, y_length, kPoolPlanesThreads, [&](int at, scalar_t dy) {
    float slope = to_acc(dy);
    if (!kMax) {
      float share = g.share;
      if (share == 0) {
        uint32_t q, p;
        g.by_out_rows.divmod(g.out_columns.divmod(at, q), p);
        share = __fdividef(
            g.whole,
            static_cast<float>(
                g.counted(static_cast<int>(p_begin + p) * g.stride - g.pad_h, g.in_h, g.pad_h,
                          g.kernel) *
                g.counted(static_cast<int>(q) * g.stride - g.pad_w, g.in_w, g.pad_w, g.kernel)));
      }
      slope *= share;
    }
    slopes[at] = slope;
  });
  if (KIND == PoolKind::kLp) {
    __syncthreads();
    over_run(g.y + y_begin, y_length, kPoolPlanesThreads, [&](int at, scalar_t y) {
      const float root = to_acc(y);
      if (is_flat(root, !g.squares))
        slopes[at] = 0;
      else if (g.squares)
        slopes[at] = __fdividef(slopes[at], root);  // root < 2^126, far above sqrt(FLT_MAX)
    });
  }
  cp_async_wait<0>();
  __syncthreads();

  const uint8_t* const window_taps = taps + phase_of(index);
  const int phase = phase_of(g.result + x_begin);
  // Of all images, the strip's rows: [images][rows][W]; with several images a strip is a plane.
#pragma unroll 1
  for (int item = threadIdx.x; item < x_length; item += kPoolPlanesThreads) {
    uint32_t w, row;
    const int image = static_cast<int>(g.by_rows.divmod(g.columns.divmod(item, w), row));
    const int place_h = h0 + static_cast<int>(row) + g.pad_h;
    const int place_w = static_cast<int>(w) + g.pad_w;
    const int q_begin = first_output(place_w), q_end = end_output(place_w, g.out_w);
    const int p_last = end_output(place_h, g.out_h);
    float sum = 0;
#pragma unroll 1
    for (int p = first_output(place_h); p < p_last; ++p) {
      const int line = image * out_size + (p - p_begin) * g.out_w;
      // Tap of output (p, q_begin) that lies here.
      int tap = (place_h - p * g.stride) * g.kernel + place_w - q_begin * g.stride;
#pragma unroll 1
      for (int q = q_begin; q < q_end; ++q, tap -= g.stride)
        if (!kMax || window_taps[line + q] == tap) sum += slopes[line + q];
    }
    if (KIND == PoolKind::kLp && g.squares) sum *= to_acc(g.x[x_begin + item]);
    stage[phase + item] = from_acc<scalar_t>(sum);
  }
  __syncthreads();
  store_run(stage, g.result + x_begin, x_length, kPoolPlanesThreads);
}

}  // namespace fastconv::cuda
