// The reductions of pool_lines.h, a few vectors at a time, in registers.
#pragma once
#include "pool_lines.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {

template <class A>
using vec_t = typename Simd<A>::vec;
template <class A>
using mask_t = typename Simd<A>::mask;

template <class A>
FC_INLINE mask_t<A> load_lanes(const lane_t<A>* p) {
  mask_t<A> m;
  std::memcpy(&m, p, sizeof(m));
  return m;
}
template <class A>
FC_INLINE void store_lanes(lane_t<A>* p, mask_t<A> m) {
  std::memcpy(p, &m, sizeof(m));
}
template <class A>
FC_INLINE mask_t<A> lanes_of(lane_t<A> a) {
  return mask_t<A>{} + a;
}

// Stochastic pooling, to the bit as pool_sample.h says. A lane whose total is NaN takes nothing but
// NaNs; where the total is infinite, the first sum that is so is the one above the threshold.
template <class A, int U>
FC_INLINE void draw(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t i) {
  constexpr int lanes = Simd<A>::lanes;
  const vec_t<A> zero{};
  const vec_t<A> most = vsplat(sizeof(A) == 4 ? A(3.402823466e+38f) : A(1.7976931348623157e+308));
  vec_t<A> y[U], sum[U], threshold[U];
  mask_t<A> arg[U], taken[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    const int64_t at = i + u * lanes;
    arg[u] = lanes_of<A>(in.first_tap);
    sum[u] = zero;
    y[u] = vload(in.row[0] + in.base + in.offset[0] + at);
    if (in.first == nullptr) continue;
    const mask_t<A> first = load_lanes<A>(in.first + at);
    arg[u] += first;
    for (int64_t k = 1; k < in.taps; ++k) {
      const vec_t<A> v = vload(in.row[0] + in.base + in.offset[k] + at);
      y[u] = first == lanes_of<A>(in.tap[k]) ? v : y[u];
    }
  }
  for (int64_t r = 0; r < in.rows; ++r)
    for (int64_t k = 0; k < in.taps; ++k) {
      const A* x = in.row[r] + in.base + in.offset[k] + i;
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const vec_t<A> v = vload(x + u * lanes);
        sum[u] += v < zero ? zero : v;
      }
    }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    taken[u] = (mask_t<A>)(sum[u] != sum[u]);
    const vec_t<A> share = vload(in.uniform + i + u * lanes) * sum[u];
    threshold[u] = sum[u] > most ? most : share;
    sum[u] = zero;
  }
  for (int64_t r = 0; r < in.rows; ++r)
    for (int64_t k = 0; k < in.taps; ++k) {
      const A* x = in.row[r] + in.base + in.offset[k] + i;
      const mask_t<A> tap = lanes_of<A>(in.row_tap[r] + in.tap[k]);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const vec_t<A> v = vload(x + u * lanes);
        const mask_t<A> some = (mask_t<A>)(v > zero);
        const mask_t<A> take = (some & ~taken[u]) | (mask_t<A>)(v != v);
        sum[u] += vkeep<A>(v, some);
        y[u] = take ? v : y[u];
        arg[u] = take ? tap : arg[u];
        taken[u] |= (mask_t<A>)(sum[u] > threshold[u]) & some;
      }
    }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    vstore(out + i + u * lanes, y[u]);
    store_lanes<A>(taps + i + u * lanes, arg[u]);
  }
}

template <class A, Reduce R, int U>
FC_INLINE void block(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t i) {
  constexpr int lanes = Simd<A>::lanes;
  constexpr bool kLargest = R == Reduce::kMax || R == Reduce::kMaxTap || R == Reduce::kMaxLine;
  constexpr bool kPlaced = R == Reduce::kMaxTap || R == Reduce::kMaxLine;
  constexpr bool kIndexed = R == Reduce::kMaxLine || R == Reduce::kSend;
  vec_t<A> acc[U], weights[U];
  mask_t<A> arg[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    acc[u] = weights[u] = vec_t<A>{};
    arg[u] = lanes_of<A>(in.first_tap);
    if (kLargest) acc[u] = vsplat(-A(__builtin_inff()));
    if (kPlaced && in.first != nullptr) arg[u] += load_lanes<A>(in.first + i + u * lanes);
  }
  for (int64_t r = 0; r < in.rows; ++r) {
    const A* row = in.row[r] + in.base + i;
    const lane_t<A>* index = kIndexed ? in.index[r] + in.base + i : nullptr;
    const lane_t<A> row_tap = kPlaced || kIndexed ? in.row_tap[r] : 0;
    for (int64_t k = 0; k < in.taps; ++k) {
      const A* x = row + in.offset[k];
      mask_t<A> tap{};
      if (kPlaced || kIndexed) tap = lanes_of<A>(row_tap + in.tap[k]);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const vec_t<A> v = vload(x + u * lanes);
        if (kLargest) {
          const mask_t<A> over = (mask_t<A>)(v > acc[u]) | (mask_t<A>)(v != v);
          acc[u] = over ? v : acc[u];
          if (R == Reduce::kMaxTap) arg[u] = over ? tap : arg[u];
          if (R == Reduce::kMaxLine)
            arg[u] = over ? load_lanes<A>(index + in.offset[k] + u * lanes) + tap : arg[u];
        } else if (R == Reduce::kSend) {
          const mask_t<A> mine = load_lanes<A>(index + in.offset[k] + u * lanes) == tap;
          acc[u] += vkeep<A>(v, mine);
        } else if (R == Reduce::kMean) {
          const vec_t<A> weight = v < vec_t<A>{} ? vec_t<A>{} : v;
          weights[u] += weight;
          acc[u] += weight * weight;
        } else {
          acc[u] += R == Reduce::kSquares ? v * v : v;
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    if (R == Reduce::kMean)
      acc[u] = vkeep<A>(acc[u] / weights[u], (mask_t<A>)(weights[u] != vec_t<A>{}));
    vstore(out + i + u * lanes, acc[u]);
    if (kPlaced) store_lanes<A>(taps + i + u * lanes, arg[u]);
  }
}

// The last block overlaps the one before it. Results are not read, so that does no harm.
template <class A, Reduce R>
void reduce(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t n) {
  constexpr int U = R == Reduce::kDraw ? 2 : 4;
  constexpr int64_t lanes = Simd<A>::lanes, wide = U * lanes;
  int64_t i = 0;
  if constexpr (R == Reduce::kDraw) {
    for (; i + wide <= n; i += wide) draw<A, U>(in, out, taps, i);
    if (n - i > lanes && n >= wide) return draw<A, U>(in, out, taps, n - wide);
    for (; i < n; i += lanes)
      draw<A, 1>(in, out, taps, i + lanes <= n || n < lanes ? i : n - lanes);
  } else {
    for (; i + wide <= n; i += wide) block<A, R, U>(in, out, taps, i);
    if (n - i > lanes && n >= wide) return block<A, R, U>(in, out, taps, n - wide);
    for (; i < n; i += lanes)
      block<A, R, 1>(in, out, taps, i + lanes <= n || n < lanes ? i : n - lanes);
  }
}

}  // namespace fastconv::cpu::FC_ISA
