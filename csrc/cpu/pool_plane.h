// Rows of outputs of one NCHW plane, of 2x2 or 3x3 windows, by both steps of pool_lines.h at once:
// a row of x is reduced across in registers, and what later windows have of it too stays as a line.
#pragma once
#include "pool_reduce.h"

namespace fastconv::cpu::FC_ISA {
namespace {  // nothing here may be shared with another set's copy by the linker

struct Yes {
  constexpr operator bool() const { return true; }
};
struct No {
  constexpr operator bool() const { return false; }
};

// How far ahead of its use memory is asked for: a core that reduces has too few loads under way to
// hide the latency of what a cache does not hold. 8 KiB are some twenty rows of a hundred numbers.
constexpr int64_t kPlaneAhead = 8192;

template <class A, Step K, int R, int STRIDE>
void plane(const PlaneRows<A>& in, lane_t<A>* seen) {
  constexpr int64_t lanes = Simd<A>::lanes;
  constexpr int kShared = R - STRIDE;  // rows of a window that the next one has too
  const vec_t<A> outside = vsplat(K == Step::kMax ? -A(__builtin_inff()) : A(0));
  const mask_t<A> even = Parts<A>::alternate(0), odd = Parts<A>::alternate(1);
  const mask_t<A> order = Parts<A>::in_order();
  const int64_t Q = in.columns, last = Q - lanes, line = (Q + lanes - 1) / lanes * lanes;
  mask_t<A> nan{}, all{};
  all -= 1;
  mask_t<A> first_on = all, last_on = all;
  if (in.padding > 0) first_on[0] = 0;
  last_on[lanes - 1] = 0;

  // What a row adds to outputs [i, i + lanes), of which, at an `edge`, not all have all their taps.
  const auto across = [&](const A* row, int64_t i, auto edge) __attribute__((always_inline)) {
    const A* x = row + i * STRIDE - in.padding;
    vec_t<A> v[R];
#pragma GCC unroll 2
    for (int64_t b = 0; b < lanes * STRIDE; b += 64 / sizeof(A))
      __builtin_prefetch(x + kPlaneAhead / sizeof(A) + b);
    if (STRIDE == 1) {
#pragma GCC unroll 3
      for (int s = 0; s < R; ++s) v[s] = vload(x + s);
      if (K == Step::kMax) nan |= vunordered<A>(v[0], v[R - 1]);
    } else {
      const vec_t<A> a = vload(x), b = vload(x + lanes);
      v[0] = __builtin_shuffle(a, b, even), v[1] = __builtin_shuffle(a, b, odd);
      if (R == 3) v[R - 1] = __builtin_shuffle(vload(x + 1), vload(x + 1 + lanes), odd);
      // The last tap of the last output is in no other block.
      if (K == Step::kMax) nan |= vunordered<A>(a, b);
      if (K == Step::kMax && edge) nan |= vunordered<A>(a, v[R - 1]);
    }
    if (edge) {
      v[0] = (i == 0 ? first_on : all) ? v[0] : outside;
#pragma GCC unroll 2
      for (int s = 1; s < R; ++s)
        v[s] = (i == last && s + in.missing >= R ? last_on : all) ? v[s] : outside;
    }
    vec_t<A> acc = K == Step::kLp ? v[0] * v[0] : v[0];
#pragma GCC unroll 3
    for (int s = 1; s < R; ++s) {
      if (K == Step::kMax)
        acc = v[s] > acc ? v[s] : acc;
      else
        acc += K == Step::kLp ? v[s] * v[s] : v[s];
    }
    return acc;
  };
  const auto blocks = [&](const auto& block) __attribute__((always_inline)) {
    block(int64_t{0}, int64_t{0}, Yes{});
    int64_t i = lanes;
    for (; i < last; i += lanes) block(i, i, No{});
    if (last > 0) block(i, last, Yes{});  // overlaps the one before
  };

  // Lines of the rows that windows share, the older one first.
  A *older = in.kept, *newer = kShared == 2 ? older + line : older;
#pragma GCC unroll 2
  for (int n = 0; n < kShared; ++n)
    blocks([&](int64_t at, int64_t i, auto edge) __attribute__((always_inline)) {
      vstore((n == 0 ? older : newer) + at, across(in.row[n], i, edge));
    });
  for (int64_t t = 0; t < in.rows; ++t) {
    const A* const* row = in.row + t * STRIDE + kShared;
    const A *upper = row[0], *lower = row[STRIDE - 1];
    A* y = in.y + t * Q;
    const vec_t<A> rows_size = vsplat(K == Step::kMax ? A(1) : in.rows_size[t]);
    blocks([&](int64_t at, int64_t i, auto edge) __attribute__((always_inline)) {
      const auto add = [](vec_t<A> acc, vec_t<A> v) __attribute__((always_inline)) {
        return K == Step::kMax ? (v > acc ? v : acc) : acc + v;
      };
      vec_t<A> v = across(upper, i, edge), acc = kShared == 0 ? v : vload(older + at);
      if (K != Step::kMax) acc += vec_t<A>{};  // a sum that begins with 0 is never -0
      if (kShared == 2) acc = add(acc, vload(newer + at));
      if (kShared > 0) acc = add(acc, v);
      if (STRIDE == 2) v = across(lower, i, edge), acc = add(acc, v);
      if (kShared > 0) vstore(older + at, v);
      if (STRIDE == 2) acc = (vec_t<A>)__builtin_shuffle(acc, order);
      if (K == Step::kSum) acc /= rows_size * vload(in.size + i);
      if (K == Step::kLp) acc = vsqrt(acc * (rows_size * vload(in.size + i)));
      vstore(y + i, acc);
    });
    A* const oldest = older;
    older = newer, newer = oldest;
  }
  if (K == Step::kMax) store_lanes<A>(seen, load_lanes<A>(seen) | nan);
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
