// One line of each normalisation pass on acc_t (norm.h says what a line is), for every activation.
#pragma once
#include "epilogue_isa.h"
#include "norm.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A>
using vec_t = typename Simd<A>::vec;

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

constexpr int kUnroll = 4;  // vectors in flight

template <class A>
struct Line {
  int64_t n;
  // Operands that a pass does not have point at y or at out, and are not used.
  const A *y, *dz, *residual;
  A *out, *dresidual;
  const A* coefs;  // at the line's channel, or its first one
  int64_t pitch;
  Activation activation;
  A slope;
  bool affine, centred, residual_first, residual_last, residual_after, with_dresidual;
  A *sum_g, *sum_gy;  // [n], or kSumVectors vectors of each for a line of one channel
};

// A coefficient of one channel, or of a vector of them.
template <class A, bool kOneChannel>
struct Coef {
  const A* from;
  vec_t<A> one;
  FC_INLINE Coef(const Line<A>& l, int which)
      : from(l.coefs + which * l.pitch), one(kOneChannel ? vsplat(*from) : vec_t<A>{}) {}
  FC_INLINE vec_t<A> at(int64_t i) const { return kOneChannel ? one : vload(from + i); }
};

// The last elements of a line where they fill no vector: the line's last vector, some of whose
// elements are others' too, or zeros behind a line shorter than that. Read before the line is
// written, for y may be overwritten.
template <class A>
struct Tail {
  static constexpr int lanes = Simd<A>::lanes;
  int64_t at;
  int live;  // the last ones of a line
  bool whole;
  A y[lanes], dz[lanes], residual[lanes], out[lanes], dresidual[lanes];

  FC_INLINE explicit Tail(const Line<A>& l)
      : at(l.n < lanes ? 0 : l.n - lanes),
        live(static_cast<int>(l.n % lanes)),
        whole(l.n >= lanes) {
    fill(l.y, l.n, y);
    fill(l.dz, l.n, dz);
    fill(l.residual, l.n, residual);
  }
  FC_INLINE void fill(const A* from, int64_t n, A* to) const {
    if (whole) return vstore(to, vload(from + at));
    for (int j = 0; j < lanes; ++j) to[j] = j < n ? from[j] : A(0);
  }
  // The elements that no vector before has had.
  FC_INLINE typename Simd<A>::mask fresh() const {
    return whole ? ~vfirst<A>(lanes - live) : vfirst<A>(live);
  }
  FC_INLINE void store(const A* from, A* to) const {
    if (whole) return vstore(to + at, vload(from));
    for (int j = 0; j < live; ++j) to[j] = from[j];
  }
};

// z = act((y - mean) * scale + bias + residual)
template <class A, bool kOneChannel>
void fprop_line(const Line<A>& l) {
  using vec = vec_t<A>;
  constexpr int lanes = Simd<A>::lanes;
  static const A identity[1] = {};
  Line<A> safe = l;
  if (!l.affine) safe.coefs = identity, safe.pitch = 0;
  const Coef<A, kOneChannel> mean(safe, kNormMean), scale(safe, kNormScale), bias(safe, kNormBias);
  const vec slope = vsplat(l.slope);
  const auto step = [&](auto width, const A* y, const A* residual, A* out, int64_t i) {
    constexpr int U = decltype(width)::value;
    vec v[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) v[u] = vload(y + u * lanes);
    if (l.affine) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const int64_t at = i + u * lanes;
        v[u] = (v[u] - mean.at(at)) * scale.at(at) + bias.at(at);
      }
    }
    if (l.residual_first) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) v[u] += vload(residual + u * lanes);
    }
    vactivate<A>(l.activation, v, slope);
    if (l.residual_last) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) v[u] += vload(residual + u * lanes);
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) vstore(out + u * lanes, v[u]);
  };
  Tail<A> t(l);
  int64_t i = 0;
  for (; i + kUnroll * lanes <= l.n; i += kUnroll * lanes)
    step(Count<kUnroll>{}, l.y + i, l.residual + i, l.out + i, i);
  for (; i + lanes <= l.n; i += lanes) step(Count<1>{}, l.y + i, l.residual + i, l.out + i, i);
  if (t.live) {
    step(Count<1>{}, t.y, t.residual, t.out, t.at);
    t.store(t.out, l.out);
  }
}

// What both backward passes begin with: d = y - mean and g = dz * act'(pre).
template <class A, bool kOneChannel>
struct Gradient {
  using vec = vec_t<A>;
  Coef<A, kOneChannel> mean, scale, bias;
  vec slope, d, g;
  Activation activation;
  bool residual;
  FC_INLINE explicit Gradient(const Line<A>& l)
      : mean(l, kNormMean),
        scale(l, kNormScale),
        bias(l, kNormBias),
        slope(vsplat(l.slope)),
        activation(l.activation),
        residual(l.residual_first) {}
  FC_INLINE void load(const A* y, const A* dz, const A* r, int64_t i) {
    d = vload(y) - mean.at(i);
    g = vload(dz);
    if (activation != Activation::kNone) {
      vec pre = d * scale.at(i) + bias.at(i);
      if (residual) pre += vload(r);
      g = vactivate_backward<A>(activation, g, pre, slope);
    }
  }
};

// Where two sums over a line of one channel (kSumVectors vectors of each, against the latency of
// additions) or over lines across the channels (a vector for every vector of them) are kept.
constexpr int kSumVectors = 2;

template <class A, bool kOneChannel>
struct Sums {
  using vec = vec_t<A>;
  static constexpr int lanes = Simd<A>::lanes;
  A *to_g, *to_gy;
  vec g[kSumVectors], gy[kSumVectors];
  FC_INLINE explicit Sums(const Line<A>& l) : to_g(l.sum_g), to_gy(l.sum_gy) {
    for (int u = 0; u < kSumVectors; ++u) {
      g[u] = vload(to_g + (kOneChannel ? u * lanes : 0));
      gy[u] = vload(to_gy + (kOneChannel ? u * lanes : 0));
    }
  }
  FC_INLINE void add(int64_t i, int u, vec a, vec b) {
    if (kOneChannel) {
      g[u] += a;
      gy[u] += b;
    } else {
      vstore(to_g + i, vload(to_g + i) + a);
      vstore(to_gy + i, vload(to_gy + i) + b);
    }
  }
  FC_INLINE void finish() {
    if (!kOneChannel) return;
    for (int u = 0; u < kSumVectors; ++u) {
      vstore(to_g + u * lanes, g[u]);
      vstore(to_gy + u * lanes, gy[u]);
    }
  }
};

// sum_g += g, sum_gy += g * (y - mean)
template <class A, bool kOneChannel>
void sums_line(const Line<A>& l) {
  constexpr int lanes = Simd<A>::lanes;
  Gradient<A, kOneChannel> at(l);
  Sums<A, kOneChannel> sums(l);
  int64_t i = 0;
  for (; i + kSumVectors * lanes <= l.n; i += kSumVectors * lanes)
#pragma GCC unroll 2
    for (int u = 0; u < kSumVectors; ++u) {
      const int64_t j = i + u * lanes;
      at.load(l.y + j, l.dz + j, l.residual + j, j);
      sums.add(j, u, at.g, at.g * at.d);
    }
  for (; i + lanes <= l.n; i += lanes) {
    at.load(l.y + i, l.dz + i, l.residual + i, i);
    sums.add(i, 0, at.g, at.g * at.d);
  }
  if (i < l.n) {
    const Tail<A> t(l);
    at.load(t.y, t.dz, t.residual, t.at);
    at.g = vkeep<A>(at.g, t.fresh());
    at.d = vkeep<A>(at.d, t.fresh());
    sums.add(t.at, 0, at.g, at.g * at.d);
  }
  sums.finish();
}

// sum_g += y - centre, sum_gy += (y - centre)^2; the centres are the coefficients
template <class A, bool kOneChannel>
void stats_line(const Line<A>& l) {
  using vec = vec_t<A>;
  constexpr int lanes = Simd<A>::lanes;
  const Coef<A, kOneChannel> centre(l, 0);
  Sums<A, kOneChannel> sums(l);
  int64_t i = 0;
  for (; i + kSumVectors * lanes <= l.n; i += kSumVectors * lanes)
#pragma GCC unroll 2
    for (int u = 0; u < kSumVectors; ++u) {
      const int64_t j = i + u * lanes;
      const vec d = vload(l.y + j) - centre.at(j);
      sums.add(j, u, d, d * d);
    }
  for (; i + lanes <= l.n; i += lanes) {
    const vec d = vload(l.y + i) - centre.at(i);
    sums.add(i, 0, d, d * d);
  }
  if (i < l.n) {
    const Tail<A> t(l);
    const vec d = vkeep<A>(vload(t.y) - centre.at(t.at), t.fresh());
    sums.add(t.at, 0, d, d * d);
  }
  sums.finish();
}

// dy = scale * g - (y - mean) * slope - offset; dresidual = g, or dz where it was added last
template <class A, bool kOneChannel>
void dgrad_line(const Line<A>& l) {
  using vec = vec_t<A>;
  constexpr int lanes = Simd<A>::lanes;
  Gradient<A, kOneChannel> at(l);
  const Coef<A, kOneChannel> slope(l, kNormSlope), offset(l, kNormOffset);
  const auto step = [&](const A* y, const A* dz, const A* residual, A* out, A* dresidual,
                        int64_t i) {
    at.load(y, dz, residual, i);
    const vec last = l.residual_after ? vload(dz) : at.g;
    vec v = at.scale.at(i) * at.g;
    if (l.centred) v = v - at.d * slope.at(i) - offset.at(i);
    vstore(out, v);
    if (l.with_dresidual) vstore(dresidual, last);
  };
  Tail<A> t(l);
  for (int64_t i = 0; i + lanes <= l.n; i += lanes)
    step(l.y + i, l.dz + i, l.residual + i, l.out + i, l.dresidual + i, i);
  if (t.live) {
    step(t.y, t.dz, t.residual, t.out, t.dresidual, t.at);
    t.store(t.out, l.out);
    if (l.with_dresidual) t.store(t.dresidual, l.dresidual);
  }
}

template <class A>
using LineFn = void (*)(const Line<A>&);

#define FC_LINE_TABLE(name)                                                \
  template <class A>                                                       \
  LineFn<A> name##_fn(const NormPlan& g) {                                 \
    return g.channels_last ? name##_line<A, false> : name##_line<A, true>; \
  }
FC_LINE_TABLE(fprop)
FC_LINE_TABLE(sums)
FC_LINE_TABLE(stats)
FC_LINE_TABLE(dgrad)
#undef FC_LINE_TABLE

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
