// The two steps of pool_lines.h for windows of few taps along a row: across it, and down its lines.
#pragma once
#include "pool_reduce.h"

namespace fastconv::cpu::FC_ISA {
namespace {  // nothing here may be shared with another set's copy by the linker

constexpr bool largest(Step k) {
  return k == Step::kMax || k == Step::kMaxTap || k == Step::kMaxExact;
}
constexpr bool placed(Step k) { return k == Step::kMaxTap || k == Step::kMaxExact; }

template <class A, Step K>
FC_INLINE A edge_of(const A* x, int64_t first, int64_t last, lane_t<A>* tap, lane_t<A>* seen) {
  A acc = x[first];
  if (K == Step::kLp) acc *= acc;
  lane_t<A> arg = static_cast<lane_t<A>>(first);
  bool nan = acc != acc;
  for (int64_t s = first + 1; s < last; ++s) {
    const A v = x[s];
    if (!largest(K)) {
      acc += K == Step::kLp ? v * v : v;
      continue;
    }
    const bool over = v > acc || (K == Step::kMaxExact && v != v);
    nan |= v != v;
    arg = over ? static_cast<lane_t<A>>(s) : arg;
    acc = over ? v : acc;
  }
  if (placed(K)) *tap = arg;
  if (largest(K)) *seen |= nan;
  return acc;
}

// The lanes moved up by one, `first` in lane 0; or down, `last` in the last.
template <class A>
FC_INLINE vec_t<A> moved_up(vec_t<A> v, A first) {
  mask_t<A> from;
  for (int l = 0; l < Simd<A>::lanes; ++l) from[l] = l == 0 ? Simd<A>::lanes : l - 1;
  return __builtin_shuffle(v, vsplat(first), from);
}
template <class A>
FC_INLINE vec_t<A> moved_down(vec_t<A> v, A last) {
  mask_t<A> from;
  for (int l = 0; l < Simd<A>::lanes; ++l) from[l] = l + 1;
  return __builtin_shuffle(v, vsplat(last), from);
}

template <class A, Step K, int S, int STRIDE>
void across(const A* x, const RowWindows& w, A* line, lane_t<A>* taps, lane_t<A>* seen) {
  constexpr int64_t lanes = Simd<A>::lanes;
  constexpr A kOutside = largest(K) ? -A(__builtin_inff()) : A(0);
  const mask_t<A> even = Parts<A>::alternate(0), odd = Parts<A>::alternate(1);
  const mask_t<A> order = Parts<A>::in_order();
  const int64_t first = w.first, last = w.last;
  x -= w.padding;
  mask_t<A> nan{};
  const auto finish = [&](const vec_t<A>* v, mask_t<A> arg, int64_t i,
                          bool ordered) __attribute__((always_inline)) {
    vec_t<A> acc = K == Step::kLp ? v[0] * v[0] : v[0];
#pragma GCC unroll 3
    for (int s = 1; s < S; ++s) {
      if (!largest(K)) {
        acc += K == Step::kLp ? v[s] * v[s] : v[s];
        continue;
      }
      mask_t<A> over = (mask_t<A>)(v[s] > acc);
      if (K == Step::kMaxExact) over |= (mask_t<A>)(v[s] != v[s]);
      if (K == Step::kMax)
        acc = v[s] > acc ? v[s] : acc;
      else
        acc = over ? v[s] : acc;
      if (placed(K)) arg = over ? lanes_of<A>(s) : arg;
    }
    vstore(line + i, ordered ? acc : (vec_t<A>)__builtin_shuffle(acc, order));
    if (placed(K)) store_lanes<A>(taps + i, ordered ? arg : __builtin_shuffle(arg, order));
  };
  const auto block = [&](int64_t i) __attribute__((always_inline)) {
    const A* from = x + i * STRIDE;
    vec_t<A> v[S];
    if (STRIDE == 1) {
#pragma GCC unroll 3
      for (int s = 0; s < S; ++s) v[s] = vload(from + s);
      if (largest(K)) nan |= vunordered<A>(v[0], v[S - 1]);
    } else {  // even and odd columns told apart; nothing beyond the last tap is read
      const vec_t<A> a = vload(from), b = vload(from + lanes);
      v[0] = __builtin_shuffle(a, b, even), v[1] = __builtin_shuffle(a, b, odd);
      if (S == 3) v[S - 1] = __builtin_shuffle(vload(from + 1), vload(from + 1 + lanes), odd);
      if (largest(K)) nan |= vunordered<A>(a, b);
    }
    finish(v, mask_t<A>{}, i, STRIDE == 1);
  };
  int64_t i = first;
  if (w.left) {  // the padding is the first lane of the first tap
    vec_t<A> v[3];
    const vec_t<A> a = vload(x + 1), b = STRIDE == 2 ? vload(x + 1 + lanes) : a;
    v[1] = STRIDE == 1 ? a : veven<A>(a, b);
    v[2] = STRIDE == 2 ? vodd<A>(a, b) : S == 3 ? vload(x + 2) : a;
    v[0] = moved_up<A>(STRIDE == 1 ? a : v[2], kOutside);
    if (largest(K)) nan |= vunordered<A>(a, b);
    mask_t<A> arg{};
    arg[0] = 1;
    finish(v, arg, 0, true);
    i = lanes;
  }
  for (; i + lanes <= last; i += lanes) block(i);
  if (i < last) block(last - lanes);  // overlaps the block before
  if (largest(K) && first < last)
    // Beyond the first vectors of the last block.
    for (int s = STRIDE; s < S; ++s) {
      const A v = x[(last - 1) * STRIDE + s];
      nan[0] |= v != v;
    }
  if (STRIDE == 1 && S == 3 && w.right) {  // the padding is the last lane of the last tap
    vec_t<A> v[3];
    const A* from = x + last + 1 - lanes;
    v[0] = vload(from), v[1] = vload(from + 1), v[2] = moved_down<A>(v[1], kOutside);
    finish(v, mask_t<A>{}, last + 1 - lanes, true);
  }
  if (largest(K)) store_lanes<A>(seen, load_lanes<A>(seen) | nan);
  for (int64_t e = 0; e < w.edges; ++e) {
    const int64_t q = w.edge[e].output;
    line[q] = edge_of<A, K>(x + q * STRIDE, w.edge[e].first, w.edge[e].last,
                            placed(K) ? taps + q : nullptr, seen);
  }
}

// R: how many lines, 0 for any number.
template <class A, Step K, int R>
void down(const WindowLines<A>& w, A* out, uint8_t* bytes, int64_t n) {
  constexpr int lanes = Simd<A>::lanes;
  typedef uint8_t Bytes __attribute__((vector_size(FC_VEC_BYTES)));
  Bytes low_bytes;  // of every lane, at the front
  for (int l = 0; l < FC_VEC_BYTES; ++l) low_bytes[l] = l % lanes * sizeof(A);
  const int rows = R == 0 ? static_cast<int>(w.rows) : R;
  // Not read anew after every store, which might have changed them for all the compiler knows.
  const A* line[R == 0 ? 1 : R];
  const lane_t<A>* line_taps[R == 0 ? 1 : R];
  mask_t<A> row_tap[R == 0 ? 1 : R];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
    line[r] = w.line[r], line_taps[r] = w.taps[r];
    if (placed(K)) row_tap[r] = lanes_of<A>(w.row_tap[r]);
  }
  const A* size = w.size;
  const vec_t<A> rows_size = vsplat(w.rows_size);
  const auto arg_of = [&](int r, int64_t i) __attribute__((always_inline)) {
    if (R == 0) return load_lanes<A>(w.taps[r] + i) + lanes_of<A>(w.row_tap[r]);
    return load_lanes<A>(line_taps[r] + i) + row_tap[r];
  };
  const auto block = [&](int64_t i) __attribute__((always_inline)) {
    vec_t<A> acc = vload((R == 0 ? w.line[0] : line[0]) + i);
    mask_t<A> arg{};
    if (placed(K)) arg = arg_of(0, i);
    if (!largest(K)) acc += vec_t<A>{};  // a sum that begins with 0 is never -0
#pragma GCC unroll 3
    for (int r = 1; r < rows; ++r) {
      const vec_t<A> v = vload((R == 0 ? w.line[r] : line[r]) + i);
      if (!largest(K)) {
        acc += v;
        continue;
      }
      mask_t<A> over = (mask_t<A>)(v > acc);
      if (K == Step::kMaxExact) over |= (mask_t<A>)(v != v);
      if (K == Step::kMax)
        acc = v > acc ? v : acc;
      else
        acc = over ? v : acc;
      if (placed(K)) arg = over ? arg_of(r, i) : arg;
    }
    if (K == Step::kSum) acc /= rows_size * vload(size + i);
    if (K == Step::kLp) acc = vsqrt(acc * (rows_size * vload(size + i)));
    vstore(out + i, acc);
    if (!placed(K) || bytes == nullptr) return;
    const Bytes narrow = __builtin_shuffle((Bytes)arg, low_bytes);
    std::memcpy(bytes + i, &narrow, lanes);
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) block(i);
  if (i < n) block(n < lanes ? 0 : n - lanes);  // overlaps the block before
}

// The way back, two columns of dx at a time: of windows S wide, 2 apart, PADDING columns before the
// row, output q reaches columns 2 q - PADDING + s. In the order of the outputs.
template <class A, int S, int PADDING>
void send(const Reads<A>& in, A* dx, int64_t n) {
  constexpr int64_t lanes = Simd<A>::lanes;
  mask_t<A> low, high;
  for (int l = 0; l < lanes; ++l) {
    low[l] = l / 2 + l % 2 * lanes;
    high[l] = low[l] + lanes / 2;
  }
  const auto block = [&](int64_t q, A* to) __attribute__((always_inline)) {
    vec_t<A> even{}, odd{};
    for (int64_t r = 0; r < in.rows; ++r) {
      const A* row = in.row[r] + q;
      const lane_t<A>* index = in.index[r] + q;
      const auto of = [&](int64_t by, int tap) __attribute__((always_inline)) {
        const mask_t<A> taken = load_lanes<A>(index + by);
        return vkeep<A>(vload(row + by), taken == lanes_of<A>(in.row_tap[r] + tap));
      };
      if (PADDING == 0) {
        if (S == 3) even += of(-1, 2);
        even += of(0, 0), odd += of(0, 1);
      } else {
        even += of(0, 1);
        if (S == 3) odd += of(0, 2);
        odd += of(1, 0);
      }
    }
    vstore(to, (vec_t<A>)__builtin_shuffle(even, odd, low));
    vstore(to + lanes, (vec_t<A>)__builtin_shuffle(even, odd, high));
  };
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) block(i / 2, dx + i);
  if (i == n) return;
  A rest[2 * lanes];
  block(i / 2, rest);
  std::memcpy(dx + i, rest, (n - i) * sizeof(A));
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
