// Pooling of every kind and every window: the fallback of the kernels for certain windows.
//
//   y[n,c,o,p,q] = reduce over (t,r,s) of x[n, c, o*stride - padding + t*dilation, ...]
//
// Mapping   one thread per element of y in memory order; a window is walked over in row-major order
//           (twice, where an element of it is drawn).
// Layouts   NCHW, NHWC; ranks 1 to 3; adaptive windows; indices none, byte or int64. Dtypes f32,
//           f64, bf16, f16 (16-bit sums in fp32). Extents below 2^31, offsets of 64 bits.
// Padding   never read.
// Bytes     |x| + |y| (+ the index) from DRAM, every x once per window that has it from L1. One
//           to three FLOPs per tap, at one load each: bound by load issue. Not measured on a GPU.
// Determinism   one thread per output, a fixed order: bitwise repeatable. Maxima and samples have
//           the bits of every other backend.
// Source    the definition; csrc/common/pool_sample.h for sampling.
#pragma once
#include "detail/pool_arguments.cuh"

namespace fastconv::cuda {

constexpr int kPoolAnyThreads = 256;
// fp64 powers take more registers than 75% of an SM's threads can have.
template <class scalar_t, PoolKind KIND>
constexpr int kPoolAnyBlocks = sizeof(scalar_t) == 8 && KIND == PoolKind::kLp ? 4 : 6;

// The window of one output of the plane that `x` points to.
template <PoolAxisKind AXES>
struct PoolWindow {
  int origin[3];
  PoolRange taps[3];

  __device__ __forceinline__ PoolWindow(const PoolGeometry& g, const int (&at)[3]) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      origin[a] = g.axis[a].template origin<AXES>(at[a]);
      taps[a] = g.axis[a].template taps<AXES>(at[a], origin[a]);
    }
  }
  __device__ __forceinline__ int first_tap(const PoolGeometry& g) const {
    return (taps[0].first * g.axis[1].kernel + taps[1].first) * g.axis[2].kernel + taps[2].first;
  }
  // Calls f(element, tap) in row-major order.
  template <class scalar_t, class F>
  __device__ __forceinline__ void walk(const PoolGeometry& g, const scalar_t* x, const F& f) const {
    const int64_t column_step = g.axis[2].dilation * g.step();
#pragma unroll 1
    for (int t = taps[0].first; t < taps[0].last; ++t) {
#pragma unroll 1
      for (int r = taps[1].first; r < taps[1].last; ++r) {
        const scalar_t* at =
            x + g.in_place(origin[0] + t * g.axis[0].dilation, origin[1] + r * g.axis[1].dilation,
                           origin[2] + taps[2].first * g.axis[2].dilation) *
                    g.step();
        const int row_tap = (t * g.axis[1].kernel + r) * g.axis[2].kernel;
#pragma unroll 2
        for (int s = taps[2].first; s < taps[2].last; ++s, at += column_step)
          f(to_acc(*at), row_tap + s);
      }
    }
  }
  // Place in the plane of a tap; place_t can hold any.
  template <class place_t>
  __device__ __forceinline__ place_t place(const PoolGeometry& g, int tap) const {
    uint32_t r, s;
    const int t = g.axis[1].by_kernel.divmod(g.axis[2].by_kernel.divmod(tap, s), r);
    const place_t d = origin[0] + t * g.axis[0].dilation;
    const place_t h = origin[1] + static_cast<int>(r) * g.axis[1].dilation;
    return (d * g.axis[1].in + h) * g.axis[2].in + origin[2] +
           static_cast<int>(s) * g.axis[2].dilation;
  }
};

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolAnyThreads, (kPoolAnyBlocks<scalar_t, KIND>))
    pool_fprop_any_kernel(const PoolArguments<scalar_t> args) {
  using A = acc_t<scalar_t>;
  const PoolGeometry& g = args.g;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPoolAnyThreads + threadIdx.x;
  if (i >= g.elements) return;
  const PoolPlace<false> place(g, i);
  const scalar_t* const x = args.x + g.plane(place.n, place.c, g.in_size);
  const PoolWindow<PoolAxisKind::kAny> window(g, place.at);
  PoolReduction<KIND, A> reduction;
  reduction.start(window.first_tap(g));
  window.walk(g, x, [&](A v, int tap) { reduction.first(v, tap, args.power.p); });
  if constexpr (KIND == PoolKind::kSample) {
    const int64_t output =
        (place.n * g.C + place.c) * g.out_size + g.out_place(place.at[0], place.at[1], place.at[2]);
    const A threshold = reduction.draw(*args.seed, static_cast<uint64_t>(output));
    const int first = window.first_tap(g);
    window.walk(g, x, [&](A v, int tap) { reduction.second(v, tap, threshold, tap == first); });
  }
  A counted = args.divisor;
  if (KIND == PoolKind::kSum && counted == A(0))
    counted = args.template counted<PoolAxisKind::kAny>(place.at[0], place.at[1], place.at[2]);
  if (KIND == PoolKind::kLp && args.whole != A(0))
    counted = args.template counted<PoolAxisKind::kAny>(place.at[0], place.at[1], place.at[2]);
  args.result[i] = from_acc<scalar_t>(
      finish<KIND>(reduction.value, reduction.weights, counted, args.whole, args.power));
  if constexpr (KIND == PoolKind::kMax || KIND == PoolKind::kSample) {
    if (args.index == nullptr) return;
    if (args.long_index)
      static_cast<int64_t*>(args.index)[i] = window.template place<int64_t>(g, reduction.tap);
    else
      static_cast<uint8_t*>(args.index)[i] = static_cast<uint8_t>(reduction.tap);
  }
}

}  // namespace fastconv::cuda
