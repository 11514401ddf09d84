// Pooling of NCHW, forward: separable, vectors over the output's columns Q.
//
//   g[h, q] = reduce over s of x[h, q stride + s dilation - padding]     one row of the input, once
//   v[d, p, q] = reduce over r of g[.., q],   y[o, p, q] = reduce over t of v[.., p, q]
// Rows g wait in a ring as tall as the window, slices v (rank 3) in one as deep; both hold acc_t.
// A maximum carries its tap beside it: s, then r S + s, then (t R + r) S + s.
// Bytes: x and y once. FLOPs: S per input row and output column, R + T per output. Bound by memory
// (1x1: by the copy). Deterministic; maxima are taken in row-major order.
#include "pool_phases.h"

namespace fastconv::cpu::FC_ISA {
namespace {

// One [Q] row of partial results; index is unused but for maxima that keep their place.
template <class A>
struct Line {
  A* value;
  lane_t<A>* index;
};

template <class T, PoolKind KIND, bool INDEX>
struct Rows {
  using A = acc_t<T>;
  static constexpr int64_t lanes = Simd<A>::lanes;
  const CpuPoolCall& call;
  const PoolProblem& p;
  const Phases phases;
  const int64_t Q, ring_rows, ring_slices;
  A *phase, *values, *slices, *count;
  lane_t<A>*row_index, *slice_index, *first_tap;
  int64_t *row_in_ring, *slice_in_ring, *places;

  static FC_INLINE int64_t reach(const PoolProblem& p, int axis) {
    const int64_t span = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
    return span < p.in[axis] ? span : p.in[axis];
  }

  // With scratch = nullptr only `bytes` is meaningful.
  int64_t bytes = 0;
  FC_INLINE Rows(const CpuPoolCall& c, void* scratch)
      : call(c),
        p(c.p),
        phases(c.p, lanes),
        Q(phases.outputs),
        ring_rows(reach(c.p, 1)),
        ring_slices(reach(c.p, 0)) {
    char* at = static_cast<char*>(scratch);
    const auto take = [&](int64_t n, int64_t size) {
      char* here = scratch == nullptr ? nullptr : at + bytes;
      bytes += (n * size + 63) / 64 * 64;
      return here;
    };
    const int64_t slice = p.out[1] * Q;
    phase = reinterpret_cast<A*>(take(phases.size(), sizeof(A)));
    values = reinterpret_cast<A*>(take((ring_rows + 1) * Q, sizeof(A)));
    slices = reinterpret_cast<A*>(take(deep() ? ring_slices * slice : 0, sizeof(A)));
    count = reinterpret_cast<A*>(take(Q, sizeof(A)));
    const int64_t size = INDEX ? sizeof(A) : 0;
    row_index = reinterpret_cast<lane_t<A>*>(take((ring_rows + 1) * Q, size));
    slice_index = reinterpret_cast<lane_t<A>*>(take(deep() ? ring_slices * slice : 0, size));
    first_tap = reinterpret_cast<lane_t<A>*>(take(Q, size));
    places = reinterpret_cast<int64_t*>(take(p.kernel_size(), INDEX ? 8 : 0));
    row_in_ring = reinterpret_cast<int64_t*>(take(ring_rows, 8));
    slice_in_ring = reinterpret_cast<int64_t*>(take(ring_slices, 8));
    if (scratch == nullptr) return;
    for (int64_t q = 0; q < Q; ++q) {
      if (INDEX) first_tap[q] = q < p.out[2] ? pool_taps(p, 2, q).first : 0;
      count[q] = KIND != PoolKind::kMax && q < p.out[2] ? static_cast<A>(c.count[2][q]) : A(1);
    }
    if (INDEX && c.index_kind == PoolIndex::kLong)
      for (int64_t tap = 0; tap < p.kernel_size(); ++tap) {
        const int64_t S = p.kernel[2], R = p.kernel[1];
        const int64_t d = tap / (R * S) * p.dilation[0], h = tap / S % R * p.dilation[1];
        places[tap] = (d * p.in[1] + h) * p.in[2] + tap % S * p.dilation[2];
      }
  }

  FC_INLINE bool deep() const { return p.kernel[0] > 1; }

  FC_INLINE void forget(int64_t* ring, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) ring[i] = -1;
  }

  // best and its index against another row's, whose taps count from `add`.
  static FC_INLINE void merge(vec_t<A>& best, mask_t<A>& arg, const Line<A>& line, int64_t q,
                              int64_t add) {
    const vec_t<A> v = vload(line.value + q);
    if (KIND != PoolKind::kMax) {
      best += v;
      return;
    }
    const mask_t<A> over = takes_over<A>(v, best);
    best = pick<A>(over, v, best);
    if (INDEX) arg = over ? load_lanes<A>(line.index + q) + lanes_of<A>(add) : arg;
  }

  // KS: the taps when known to the compiler, else 0.
  template <int KS>
  FC_INLINE void reduce_row(const Line<A>& out) const {
    const int64_t S = KS > 0 ? KS : p.kernel[2];
    for (int64_t q = 0; q < Q; q += lanes) {
      vec_t<A> best = vload(phase + q);  // tap 0
      mask_t<A> arg{};
      if (INDEX) {
        // The first tap inside: what lies before it is -inf, which nothing real is below.
        arg = load_lanes<A>(first_tap + q);
      }
#pragma GCC unroll 4
      for (int64_t s = 1; s < S; ++s) {
        const vec_t<A> v = vload(phase + phases.place(s) + q);
        if (KIND == PoolKind::kMax) {
          const mask_t<A> over = takes_over<A>(v, best);
          best = pick<A>(over, v, best);
          if (INDEX) arg = over ? lanes_of<A>(s) : arg;
        } else {
          best += v;
        }
      }
      vstore(out.value + q, best);
      if (INDEX) store_lanes<A>(out.index + q, arg);
    }
  }

  FC_INLINE Line<A> ring_line(int64_t slot) const {
    return {values + slot * Q, INDEX ? row_index + slot * Q : nullptr};
  }

  // g of row h of a slice [H, W].
  FC_INLINE Line<A> row(const T* slice, int64_t h) const {
    const int64_t slot = h % ring_rows;
    const Line<A> line = ring_line(slot);
    if (row_in_ring[slot] == h) return line;
    row_in_ring[slot] = h;
    split_phases(phases, slice + h * p.in[2], identity_of(KIND, A()), phase);
    if (KIND == PoolKind::kLp && call.power != 1)
      for (int64_t j = 0; j < phases.stride; ++j)
        if (phases.used(j)) raise(phase + j * phases.length);
    switch (p.kernel[2]) {
      case 2: reduce_row<2>(line); break;
      case 3: reduce_row<3>(line); break;
      default: reduce_row<0>(line);
    }
    return line;
  }

  FC_INLINE void raise(A* x) const {
    int64_t i = 0;
    for (; i + lanes <= phases.length; i += lanes) vstore(x + i, vpow<A>(vload(x + i), call.power));
    for (; i < phases.length; ++i) {
      const A v = x[i];
      x[i] = call.power == 2 ? v * v : call.power == 3 ? v * v * v : pow_of(v, call.power);
    }
  }

  // v of output row j of a slice.
  FC_INLINE void reduce_rows(const T* slice, int64_t j, const Line<A>& out) const {
    const PoolTaps r = pool_taps(p, 1, j);
    const int64_t h0 = p.origin(1, j);
    // The rows may be computed into each other's places only if the ring is too short; it is not.
    for (int64_t i = r.first; i < r.last; ++i) row(slice, h0 + i * p.dilation[1]);
    for (int64_t q = 0; q < Q; q += lanes) {
      vec_t<A> best = vsplat(identity_of(KIND, A()));
      mask_t<A> arg{};
      if (INDEX) arg = load_lanes<A>(first_tap + q) + lanes_of<A>(r.first * p.kernel[2]);
      for (int64_t i = r.first; i < r.last; ++i) {
        const Line<A> line = ring_line((h0 + i * p.dilation[1]) % ring_rows);
        merge(best, arg, line, q, i * p.kernel[2]);
      }
      vstore(out.value + q, best);
      if (INDEX) store_lanes<A>(out.index + q, arg);
    }
  }

  FC_INLINE Line<A> slice_line(int64_t d, int64_t j) const {
    const int64_t at = (d % ring_slices * p.out[1] + j) * Q;
    return {slices + at, INDEX ? slice_index + at : nullptr};
  }

  // y of one output row from its finished reduction.
  FC_INLINE void finish(const Line<A>& line, int64_t plane, int64_t o, int64_t j) const {
    const int64_t at = ((plane * p.out[0] + o) * p.out[1] + j) * p.out[2];
    if (KIND != PoolKind::kMax) {
      const vec_t<A> rows = vsplat(static_cast<A>(call.count[0][o] * call.count[1][j]));
      for (int64_t q = 0; q < Q; q += lanes) {
        vec_t<A> v = vload(line.value + q) / (rows * vload(count + q));
        if (KIND == PoolKind::kLp) v = vroot<A>(v * vsplat(A(call.scale)), call.power);
        vstore(line.value + q, v);
      }
    }
    store_run(line.value, static_cast<T*>(call.result) + at, 1, p.out[2]);
    if (!INDEX) return;
    if (call.index_kind == PoolIndex::kByte) {
      uint8_t* bytes = static_cast<uint8_t*>(call.index) + at;
      for (int64_t q = 0; q < p.out[2]; ++q) bytes[q] = static_cast<uint8_t>(line.index[q]);
      return;
    }
    int64_t* index = static_cast<int64_t*>(call.index) + at;
    const int64_t origin = (p.origin(0, o) * p.in[1] + p.origin(1, j)) * p.in[2] + p.origin(2, 0);
    for (int64_t q = 0; q < p.out[2]; ++q)
      index[q] = origin + q * p.stride[2] + places[line.index[q]];
  }

  // Output rows [from, to) of slice o of one plane.
  FC_INLINE void slice(int64_t plane, int64_t o, int64_t from, int64_t to) const {
    const T* x = static_cast<const T*>(call.x) + plane * p.in_size();
    const int64_t area = p.in[1] * p.in[2], d0 = p.origin(0, o);
    const PoolTaps t = pool_taps(p, 0, o);
    const Line<A> out = ring_line(ring_rows);
    if (!deep()) {
      forget(row_in_ring, ring_rows);
      for (int64_t j = from; j < to; ++j) {
        reduce_rows(x + d0 * area, j, out);
        finish(out, plane, o, j);
      }
      return;
    }
    for (int64_t i = t.first; i < t.last; ++i) {
      const int64_t d = d0 + i * p.dilation[0];
      if (slice_in_ring[d % ring_slices] == d) continue;
      slice_in_ring[d % ring_slices] = d;
      forget(row_in_ring, ring_rows);
      for (int64_t j = from; j < to; ++j) reduce_rows(x + d * area, j, slice_line(d, j));
    }
    for (int64_t j = from; j < to; ++j) {
      const int64_t RS = p.kernel[1] * p.kernel[2];
      const PoolTaps r = pool_taps(p, 1, j);
      for (int64_t q = 0; q < Q; q += lanes) {
        vec_t<A> best = vsplat(identity_of(KIND, A()));
        mask_t<A> arg{};
        if (INDEX)
          arg = load_lanes<A>(first_tap + q) + lanes_of<A>(r.first * p.kernel[2] + t.first * RS);
        for (int64_t i = t.first; i < t.last; ++i)
          merge(best, arg, slice_line(d0 + i * p.dilation[0], j), q, i * RS);
        vstore(out.value + q, best);
        if (INDEX) store_lanes<A>(out.index + q, arg);
      }
      finish(out, plane, o, j);
    }
  }
};

// Pieces of a plane, so that few planes still keep every thread busy: of O where slices are kept,
// else of P.
int64_t pieces(const CpuPoolCall& c, int threads) {
  const int64_t planes = c.p.N * c.p.C;
  const int64_t most = c.p.kernel[0] > 1 ? c.p.out[0] : c.p.out[1];
  int64_t n = (4 * threads + planes - 1) / planes;
  if (n > most / 4) n = most / 4;
  return n < 1 ? 1 : n;
}

template <class T, PoolKind KIND, bool INDEX>
void run_as(const CpuPoolCall& c, int64_t begin, int64_t end, int threads, void* scratch) {
  const PoolProblem& p = c.p;
  const Rows<T, KIND, INDEX> rows(c, scratch);
  const int64_t n = pieces(c, threads);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / n, piece = task % n;
    const bool deep = rows.deep();
    const int64_t whole = deep ? p.out[0] : p.out[1];
    const int64_t from = whole * piece / n, to = whole * (piece + 1) / n;
    rows.forget(rows.slice_in_ring, rows.ring_slices);
    for (int64_t o = deep ? from : 0; o < (deep ? to : p.out[0]); ++o)
      rows.slice(plane, o, deep ? 0 : from, deep ? p.out[1] : to);
  }
}

template <class T>
void run_typed(const CpuPoolCall& c, int64_t begin, int64_t end, int threads, void* scratch) {
  constexpr auto kMax = PoolKind::kMax, kSum = PoolKind::kSum, kLp = PoolKind::kLp;
  if (c.kind == kSum) return run_as<T, kSum, false>(c, begin, end, threads, scratch);
  if (c.kind == kLp) return run_as<T, kLp, false>(c, begin, end, threads, scratch);
  if (c.index_kind == PoolIndex::kNone)
    return run_as<T, kMax, false>(c, begin, end, threads, scratch);
  return run_as<T, kMax, true>(c, begin, end, threads, scratch);
}

int64_t tasks(const CpuPoolCall& c, int threads) { return c.p.N * c.p.C * pieces(c, threads); }
int64_t scratch(const CpuPoolCall& c) {
  if (c.dtype == DType::kFloat64) return Rows<double, PoolKind::kMax, true>(c, nullptr).bytes;
  return Rows<float, PoolKind::kMax, true>(c, nullptr).bytes;
}
void run(const CpuPoolCall& c, int64_t begin, int64_t end, int threads, void* scratch) {
  switch (c.dtype) {
    case DType::kFloat32: return run_typed<float>(c, begin, end, threads, scratch);
    case DType::kFloat64: return run_typed<double>(c, begin, end, threads, scratch);
    case DType::kBFloat16: return run_typed<bf16>(c, begin, end, threads, scratch);
    case DType::kFloat16: return run_typed<f16>(c, begin, end, threads, scratch);
  }
}

}  // namespace

extern const PoolTable pool_rows;
const PoolTable pool_rows = {tasks, scratch, run};

}  // namespace fastconv::cpu::FC_ISA
