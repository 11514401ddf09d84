// The reductions of pool_lines.h, a few vectors at a time, in registers.
#pragma once
#include "pool_lines.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {  // nothing here may be shared with another set's copy by the linker

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
    if (in.more) {
      acc[u] = vload(out + i + u * lanes);
      if (kPlaced) arg[u] = load_lanes<A>(taps + i + u * lanes);
    }
  }
  for (int64_t r = 0; r < in.rows; ++r) {
    const A* row = in.row[r] + in.base + i;
    const lane_t<A>* index = kIndexed ? in.index[r] + in.base + i : nullptr;
    const lane_t<A> row_tap = kPlaced || kIndexed ? in.row_tap[r] : 0;
    for (int64_t k = 0; k < in.taps; ++k) {
      const A* x = row + in.offset[k];
      if (in.ahead != 0)
        for (int64_t b = 0; b < U * lanes; b += 64 / sizeof(A))
          __builtin_prefetch(x + in.ahead + b);
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

template <class A, Reduce R, int U>
FC_INLINE void step(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t i) {
  if constexpr (R == Reduce::kDraw)
    draw<A, U>(in, out, taps, i);
  else
    block<A, R, U>(in, out, taps, i);
}

// The last block overlaps the one before it, which does no harm unless results are carried on.
template <class A, Reduce R>
void reduce(const Reads<A>& reads, A* out, lane_t<A>* taps, int64_t n) {
  constexpr int U = R == Reduce::kDraw ? 2 : 4;
  constexpr int64_t lanes = Simd<A>::lanes, wide = U * lanes;
  Reads<A> in = reads;
  for (int64_t time = 0; time < reads.times; ++time) {
    int64_t i = 0;
    for (; i + wide <= n; i += wide) step<A, R, U>(in, out, taps, i);
    if (n - i > lanes && n >= wide && !in.more) {
      step<A, R, U>(in, out, taps, n - wide);
      i = n;
    }
    for (; i < n; i += lanes)
      step<A, R, 1>(in, out, taps, i + lanes <= n || n < lanes ? i : n - lanes);
    in.base += in.step, out += in.out_step;
    if (R == Reduce::kDraw) in.uniform += in.out_step;
    if (R == Reduce::kDraw || R == Reduce::kMaxTap || R == Reduce::kMaxLine) taps += in.out_step;
  }
}

// Even or odd lanes of two vectors without leaving their 16-byte parts, which takes one instruction
// instead of three; in_order puts the lanes of a result right, once.
template <class A>
struct Parts {
  static constexpr int lanes = Simd<A>::lanes, part = 16 / sizeof(A), half = part / 2;
  static FC_INLINE mask_t<A> alternate(int odd) {
    mask_t<A> m;
    for (int i = 0; i < lanes; ++i) {
      const int from = i % part < half ? 0 : lanes;
      m[i] = from + i / part * part + i % half * 2 + odd;
    }
    return m;
  }
  // Output lane i of the pair's lanes lies there.
  static FC_INLINE mask_t<A> in_order() {
    mask_t<A> m;
    for (int i = 0; i < lanes; ++i) {
      const int k = i % (lanes / 2);
      m[i] = k / half * part + k % half + (i < lanes / 2 ? 0 : half);
    }
    return m;
  }
  static FC_INLINE mask_t<A> out_of_order() {
    mask_t<A> m;
    const mask_t<A> there = in_order();
    for (int i = 0; i < lanes; ++i) m[there[i]] = i;
    return m;
  }
};

template <class A, Reduce R>
FC_INLINE void slide_block(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t i) {
  constexpr int lanes = Simd<A>::lanes;
  constexpr bool kLargest = R == Reduce::kMax || R == Reduce::kMaxTap;
  const mask_t<A> even = Parts<A>::alternate(0), odd = Parts<A>::alternate(1);
  vec_t<A> acc = kLargest ? vsplat(-A(__builtin_inff())) : vec_t<A>{};
  mask_t<A> arg{};
  if (R == Reduce::kMaxTap) {
    arg = lanes_of<A>(in.first_tap);
    if (in.first != nullptr)
      arg += __builtin_shuffle(load_lanes<A>(in.first + i), Parts<A>::out_of_order());
  }
  const auto meet = [&](vec_t<A> v, lane_t<A> tap) {
    const mask_t<A> over = (mask_t<A>)(v > acc) | (mask_t<A>)(v != v);
    acc = over ? v : acc;
    if (R == Reduce::kMaxTap) arg = over ? lanes_of<A>(tap) : arg;
  };
  if (kLargest) {  // in row-major order
    for (int64_t r = 0; r < in.rows; ++r)
      for (int64_t k = 0; k < in.taps; k += 2) {
        const A* x = in.row[r] + 2 * i + k;
        const vec_t<A> a = vload(x), b = vload(x + lanes);
        meet(__builtin_shuffle(a, b, even), in.row_tap[r] + static_cast<lane_t<A>>(k));
        if (k + 1 == in.taps) break;
        meet(__builtin_shuffle(a, b, odd), in.row_tap[r] + static_cast<lane_t<A>>(k + 1));
      }
  } else {  // down the columns first
    for (int64_t k = 0; k < in.taps; k += 2) {
      vec_t<A> a{}, b{};
      for (int64_t r = 0; r < in.rows; ++r) {
        const A* x = in.row[r] + 2 * i + k;
        const vec_t<A> v = vload(x), w = vload(x + lanes);
        a += R == Reduce::kSquares ? v * v : v;
        b += R == Reduce::kSquares ? w * w : w;
      }
      acc += __builtin_shuffle(a, b, even);
      if (k + 1 < in.taps) acc += __builtin_shuffle(a, b, odd);
    }
  }
  const mask_t<A> order = Parts<A>::in_order();
  vstore(out + i, (vec_t<A>)__builtin_shuffle(acc, order));
  if (R == Reduce::kMaxTap) store_lanes<A>(taps + i, __builtin_shuffle(arg, order));
}

template <class A, Reduce R>
void slide(const Reads<A>& in, A* out, lane_t<A>* taps, int64_t n) {
  constexpr int64_t lanes = Simd<A>::lanes;
  for (int64_t i = 0; i < n; i += lanes)
    slide_block<A, R>(in, out, taps, i + lanes <= n || n < lanes ? i : n - lanes);
}

// A vector of x[i, n) where a whole one is not left, `outside` in the lanes without one.
template <class A>
FC_INLINE vec_t<A> load_rest(const A* x, int64_t i, int64_t n, A outside) {
  constexpr int lanes = Simd<A>::lanes;
  A rest[lanes];
  for (int l = 0; l < lanes; ++l) rest[l] = i + l < n ? x[i + l] : outside;
  return vload(rest);
}

// How far ahead of its use memory is asked for: see pool_plane.h.
constexpr int64_t kStripAhead = 4096;

template <class A, Reduce R>
void strip_sum(const A* const* row, const lane_t<A>*, int64_t rows, int64_t n, int64_t step,
               int64_t planes, A* out, lane_t<A>*) {
  constexpr int64_t lanes = Simd<A>::lanes, kGroup = 16;
  A sums[kGroup * lanes];
  const int64_t whole = n / lanes * lanes;
  const auto term = [](vec_t<A> v) { return R == Reduce::kSquares ? v * v : v; };
  // Of the last vector of a row, the lanes that whole vectors have not had.
  const typename Simd<A>::mask fresh = ~vfirst<A>(static_cast<int>(lanes - (n - whole)));
  for (int64_t from = 0; from < planes; from += kGroup) {
    const int64_t count = planes - from < kGroup ? planes - from : kGroup;
    for (int64_t g = 0; g < count; ++g) {
      vec_t<A> a{}, b{}, c{}, d{};
      for (int64_t r = 0; r < rows; ++r) {
        const A* x = row[r] + (from + g) * step;
        int64_t i = 0;
        for (; i + 4 * lanes <= n; i += 4 * lanes) {
          for (int64_t b = 0; b < 4 * lanes; b += 64 / sizeof(A))
            __builtin_prefetch(x + i + kStripAhead / sizeof(A) + b);
          a += term(vload(x + i)), b += term(vload(x + i + lanes));
          c += term(vload(x + i + 2 * lanes)), d += term(vload(x + i + 3 * lanes));
        }
        for (; i < whole; i += lanes) b += term(vload(x + i));
        if (i == n) continue;
        if (n >= lanes)
          c += term(vkeep<A>(vload(x + n - lanes), fresh));
        else
          c += term(load_rest<A>(x, i, n, A(0)));
      }
      vstore(sums + g * lanes, (a + b) + (c + d));
    }
    sum_lanes<A>(sums, count, out + from);
  }
}

// Lanes take turns with a row's elements, so they are told apart by their taps at the end: of ties
// the first stays, of NaNs the last.
template <class A>
void strip_max(const A* const* row, const lane_t<A>* row_tap, int64_t rows, int64_t n, int64_t step,
               int64_t planes, A* out, lane_t<A>* taps) {
  constexpr int64_t lanes = Simd<A>::lanes;
  mask_t<A> lane;
  for (int l = 0; l < lanes; ++l) lane[l] = l;
  for (int64_t g = 0; g < planes; ++g) {
    vec_t<A> best[2];
    mask_t<A> arg[2];
    for (int u = 0; u < 2; ++u) {
      best[u] = vsplat(-A(__builtin_inff()));
      arg[u] = lanes_of<A>(row_tap[0]);
    }
    const auto meet = [&](int u, vec_t<A> v, mask_t<A> tap) {
      const mask_t<A> over = (mask_t<A>)(v > best[u]) | (mask_t<A>)(v != v);
      best[u] = over ? v : best[u];
      arg[u] = over ? tap : arg[u];
    };
    for (int64_t r = 0; r < rows; ++r) {
      const A* x = row[r] + g * step;
      const mask_t<A> first = lane + row_tap[r];
      int64_t i = 0;
      for (; i + 2 * lanes <= n; i += 2 * lanes) {
        meet(0, vload(x + i), first + static_cast<lane_t<A>>(i));
        meet(1, vload(x + i + lanes), first + static_cast<lane_t<A>>(i + lanes));
      }
      for (; i < n; i += lanes) {
        if (i + lanes > n && n >= lanes) i = n - lanes;
        const vec_t<A> v = n >= lanes ? vload(x + i) : load_rest<A>(x, i, n, -A(__builtin_inff()));
        meet(0, v, first + static_cast<lane_t<A>>(i));
      }
    }
    A top = best[0][0];
    lane_t<A> place = arg[0][0];
    for (int l = 1; l < 2 * lanes; ++l) {
      const A v = best[l / lanes][l % lanes];
      const lane_t<A> t = arg[l / lanes][l % lanes];
      const bool nan = v != v, top_nan = top != top;
      const bool over =
          nan ? !top_nan || t > place : !top_nan && (v > top || (v == top && t < place));
      top = over ? v : top;
      place = over ? t : place;
    }
    out[g] = top;
    if (taps != nullptr) taps[g] = place;
  }
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
