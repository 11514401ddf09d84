// Pooling of NCHW, rank 2, K x K taps and stride known at compile time.
//
//   y[n,c,p,q] = reduce over (r,s) of x[n,c, p*STRIDE - pad + r, q*STRIDE - pad + s]
//
// Mapping   a block copies its rows of x to shared memory, one run of 16-byte pieces whatever their
//           alignment. A thread has one column q and walks down P: it reduces each row of x once
//           along s, keeps the last K - STRIDE of those in registers, and reduces K of them to an
//           output (kSample, whose order of additions is fixed, walks over the window instead).
//           Outputs and byte indices are staged in shared memory and leave as one run, again by 16
//           bytes; int64 indices are written directly, neighbouring threads to neighbouring places.
// Layouts   x [N,C,H,W], y and index [N,C,P,Q]; any alignment. Dtypes f32, bf16, f16, in fp32.
// kSum      also Lp of power 1 and 2: fma(x, squares ? x : 1, sum), then the root.
// Padding   never read.
// Bytes     |x| + |y| (+ the index) from DRAM, (K - STRIDE) rows per strip again from L2. Per
//           output K*STRIDE shared loads and as many updates, then K: 6 + 3 at 3x3/2. DRAM is the
//           bound for fp32; 16-bit types at stride 1 are bound by instructions. Not measured on a
//           GPU.
// Occupancy 24 KiB of shared memory and at most 40 registers: 6 blocks of 256 threads on an SM.
// Determinism   one thread per output, sums by rows, then over them: bitwise repeatable, whatever
//           the strips. Maxima and samples have the bits of every other backend.
// Source    the definition; csrc/common/pool_sample.h for sampling.
#pragma once
#include "detail/pool_planes.cuh"
#include "detail/pool_runs.cuh"

namespace fastconv::cuda {

// One row of a window, reduced along s.
struct PoolRow {
  float value;
  int s;
};

template <PoolKind KIND, int K, class scalar_t>
__device__ __forceinline__ PoolRow reduce_row(const scalar_t* row, int w0, int width,
                                              bool squares) {
  PoolRow out = {KIND == PoolKind::kMax ? lowest(0.f) : 0.f, 0};
#pragma unroll
  for (int s = 0; s < K; ++s) {
    if (static_cast<unsigned>(w0 + s) >= static_cast<unsigned>(width)) continue;
    const float v = to_acc(row[w0 + s]);
    if constexpr (KIND == PoolKind::kMax) {
      if (takes_over(v, out.value)) out.value = v, out.s = s;
    } else {
      out.value = fmaf(v, squares ? v : 1.f, out.value);
    }
  }
  return out;
}

// The tap of the window at (h0, w0) that `draw` falls on; its element is the sample.
template <int K, class scalar_t>
__device__ __forceinline__ int sample_tap(const scalar_t* tile, const PoolPlanes<scalar_t>& g,
                                          int h0, int w0, uint64_t output) {
  PoolReduction<PoolKind::kSample, float> window;
  const int first = max(-h0, 0) * K + max(-w0, 0);
  window.start(first);
  const auto walk = [&](const auto& f) {
#pragma unroll 1
    for (int r = max(-h0, 0); r < min(K, g.in_h - h0); ++r) {
#pragma unroll
      for (int s = 0; s < K; ++s)
        if (static_cast<unsigned>(w0 + s) < static_cast<unsigned>(g.in_w))
          f(to_acc(tile[(h0 + r) * g.in_w + w0 + s]), r * K + s);
    }
  };
  walk([&](float v, int tap) { window.first(v, tap, 0); });
  const float threshold = window.draw(*g.seed, output);
  walk([&](float v, int tap) { window.second(v, tap, threshold, false); });
  return window.tap;
}

template <class scalar_t, PoolKind KIND, int K, int STRIDE>
__global__ void __launch_bounds__(kPoolPlanesThreads, 6)
    pool_fprop_planes_kernel(const PoolPlanes<scalar_t> g) {
  FC_DYN_SHARED(unsigned char, shared);
  uint32_t strip;
  const int plane0 = static_cast<int>(g.strips.divmod(blockIdx.x, strip)) * g.images;
  const int images = min(g.images, g.planes - plane0);
  const int p0 = static_cast<int>(strip) * g.rows, rows = min(g.rows, g.out_h - p0);
  const int h_begin = max(p0 * STRIDE - g.pad_h, 0);
  const int h_end = min((p0 + rows - 1) * STRIDE - g.pad_h + K, g.in_h);
  const int in_size = g.in_h * g.in_w, out_size = g.out_h * g.out_w;
  const scalar_t* const x = g.x + static_cast<int64_t>(plane0) * in_size + h_begin * g.in_w;
  const int64_t y_begin = static_cast<int64_t>(plane0) * out_size + p0 * g.out_w;
  const int y_length = (images - 1) * out_size + rows * g.out_w;

  scalar_t* const tile = reinterpret_cast<scalar_t*>(shared);  // [images][rows of x][W], a run
  scalar_t* const stage = reinterpret_cast<scalar_t*>(shared + g.stage);  // [images][rows][Q]
  uint16_t* const index_stage = reinterpret_cast<uint16_t*>(shared + g.index_stage);  // the same
  load_run(tile, x, (images - 1) * in_size + (h_end - h_begin) * g.in_w, kPoolPlanesThreads);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  constexpr bool kIndexed = KIND == PoolKind::kMax || KIND == PoolKind::kSample;
  uint8_t* const bytes = static_cast<uint8_t*>(g.index) + y_begin;
  const int x_phase = phase_of(x) - h_begin * g.in_w, y_phase = phase_of(g.result + y_begin);
  const int byte_phase = phase_of(bytes);
  const int items = images * static_cast<int>(g.walks.divisor) * g.out_w;
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += kPoolPlanesThreads) {
    uint32_t q, walk;
    const int image = static_cast<int>(g.walks.divmod(g.columns.divmod(item, q), walk));
    const int first = static_cast<int>(walk) * g.walk, last = min(first + g.walk, rows);
    const int w0 = static_cast<int>(q) * STRIDE - g.pad_w;
    const scalar_t* const plane = tile + x_phase + image * in_size;
    int at = image * out_size + first * g.out_w + static_cast<int>(q);
    const auto keep = [&](scalar_t value, int h0, int tap) {
      stage[y_phase + at] = value;
      if (kIndexed && g.index != nullptr) {
        if (g.long_index)
          static_cast<int64_t*>(g.index)[y_begin + at] = (h0 + tap / K) * g.in_w + w0 + tap % K;
        else
          index_stage[byte_phase + at] = static_cast<uint16_t>(tap);
      }
      at += g.out_w;
    };
    if constexpr (KIND == PoolKind::kSample) {
#pragma unroll 1
      for (int p = first; p < last; ++p) {
        const int h0 = (p0 + p) * STRIDE - g.pad_h;
        const int tap = sample_tap<K>(plane, g, h0, w0, static_cast<uint64_t>(y_begin + at));
        keep(plane[(h0 + tap / K) * g.in_w + w0 + tap % K], h0, tap);
      }
    } else {
      constexpr int kKept = K > STRIDE ? K - STRIDE : 0;
      constexpr int kAhead = (kKept + STRIDE - 1) / STRIDE;  // steps before the first output
      PoolRow window[K] = {};
#pragma unroll 1
      for (int p = first - kAhead; p < last; ++p) {
        const int h0 = (p0 + p) * STRIDE - g.pad_h;
#pragma unroll
        for (int r = 0; r < kKept; ++r) window[r] = window[r + STRIDE];
#pragma unroll
        for (int r = kKept; r < K; ++r) {
          const int h = h0 + r;
          window[r] = {KIND == PoolKind::kMax ? lowest(0.f) : 0.f, 0};
          if (h >= h_begin && h < h_end)
            window[r] = reduce_row<KIND, K>(plane + h * g.in_w, w0, g.in_w, g.squares);
        }
        if (p < first) continue;
        if constexpr (KIND == PoolKind::kMax) {
          float best = lowest(0.f);
          int tap = max(-h0, 0) * K + max(-w0, 0);
#pragma unroll
          for (int r = 0; r < K; ++r)
            if (takes_over(window[r].value, best))
              best = window[r].value, tap = r * K + window[r].s;
          keep(from_acc<scalar_t>(best), h0, tap);
        } else {
          float sum = window[0].value;
#pragma unroll
          for (int r = 1; r < K; ++r) sum += window[r].value;
          float counted = g.divisor;
          if (counted == 0)
            counted = static_cast<float>(g.counted(h0, g.in_h, g.pad_h, K) *
                                         g.counted(w0, g.in_w, g.pad_w, K));
          sum = sum / counted * g.whole;
          keep(from_acc<scalar_t>(g.squares ? sqrtf(sum) : sum), h0, 0);
        }
      }
    }
  }
  __syncthreads();
  store_run(stage, g.result + y_begin, y_length, kPoolPlanesThreads);
  if (kIndexed && g.index != nullptr && !g.long_index)
    store_low_bytes(index_stage, bytes, y_length, kPoolPlanesThreads);
}

}  // namespace fastconv::cuda
