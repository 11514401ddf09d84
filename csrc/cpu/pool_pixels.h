// 2x2 and 3x3 windows of NHWC pixels (pool_lines.h), every tap at once: vectors over channels, the
// taps compiled in.
#pragma once
#include "pool_reduce.h"

namespace fastconv::cpu::FC_ISA {
namespace {  // nothing here may be shared with another set's copy by the linker

// How far ahead of its use memory is asked for, as in pool_plane.h; rows of pixels are longer.
constexpr int64_t kPixelsAhead = 4096;

template <int N>
struct Vectors {
  static constexpr int value = N;
};

// Element c of output q is reduced from row[r][(q STRIDE + s) C + c], r, s < R, in this order.
template <class A, Step K, int R, int STRIDE>
void pixels(const PixelRows<A>& in, lane_t<A>* seen) {
  constexpr int64_t lanes = Simd<A>::lanes;
  constexpr int U = 4;
  const int64_t C = in.channels;
  const A* row[R];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) row[r] = in.row[r];
  const vec_t<A> size = vsplat(in.size);
  mask_t<A> nan{};
  const auto block = [&](const A* const* x, A* y, auto vectors,
                         int first_seen) __attribute__((always_inline)) {
    constexpr int V = decltype(vectors)::value;
    vec_t<A> acc[V];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int s = 0; s < R; ++s) {
        vec_t<A> v[V];
#pragma GCC unroll 4
        for (int u = 0; u < V; ++u) {
          v[u] = vload(x[r] + s * C + u * lanes);
          if (r + s == 0)
            acc[u] = K == Step::kMax ? v[u] : K == Step::kLp ? v[u] * v[u] : v[u] + vec_t<A>{};
          else if (K == Step::kMax)
            acc[u] = v[u] > acc[u] ? v[u] : acc[u];
          else
            acc[u] += K == Step::kLp ? v[u] * v[u] : v[u];
        }
        if (K != Step::kMax || s < first_seen) continue;
#pragma GCC unroll 4
        for (int u = 0; u < V; u += 2) nan |= vunordered<A>(v[u], v[V == 1 ? 0 : u + 1]);
      }
#pragma GCC unroll 4
    for (int u = 0; u < V; ++u) {
      if (K == Step::kSum) acc[u] /= size;
      if (K == Step::kLp) acc[u] = vsqrt(acc[u]);
      vstore(y + u * lanes, acc[u]);
    }
  };
  for (int64_t q = 0; q < in.columns; ++q) {
    const A* x[R];
    // Columns that the output before had too have been looked at.
    const int first_seen = q == 0 ? 0 : R - STRIDE;
    A* y = in.y + q * C;
    for (int64_t c = 0; c < C;) {
      const bool wide = c + U * lanes <= C;
      const int64_t at = wide || c + lanes <= C ? c : C - lanes;
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) x[r] = row[r] + q * STRIDE * C + at;
      if (wide) {
        // The rows that the windows above had not: their share of what is behind STRIDE pixels.
#pragma GCC unroll 2
        for (int r = R - STRIDE; r < R; ++r)
          for (int64_t b = 0; b < U * lanes * STRIDE; b += 64 / sizeof(A))
            __builtin_prefetch(x[r] + c * (STRIDE - 1) + kPixelsAhead / sizeof(A) + b);
        block(x, y + at, Vectors<U>{}, first_seen);
        c += U * lanes;
      } else {
        block(x, y + at, Vectors<1>{}, first_seen);
        c += lanes;
      }
    }
  }
  if (K == Step::kMax) store_lanes<A>(seen, load_lanes<A>(seen) | nan);
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
