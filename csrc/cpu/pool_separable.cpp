// Pooling, forward, of NCHW windows with two or three taps along a row, one or two columns apart:
//   y[n,c,p,q] = reduce over r of (reduce over s of x[n, c, p*stride - padding + r, ...])
//
// Each row of a plane becomes a line [Q] once, reduced across; the lines of a window's R rows,
// which a ring holds, are reduced down into a row of y. Both steps have their taps compiled in
// (pool_across.h) and read rows where they lie: the few outputs that reach into the padding are
// made one by one. Rows of 16-bit numbers, and those of fewer outputs than a vector has lanes, are
// copied behind their padding first.
// The windows of most networks, 2x2/2, 3x3/1 and 3x3/2 without an index, take both steps at once
// (pool_plane.h), many rows of outputs to a call: only the lines that two windows share are stored.
// With what is asked for 8 KiB ahead of its use, that took 8x64x112x112 fp32, 3x3/2, on two threads
// of an AMD EPYC (family 25, model 1) from 0.5 (norms) and 0.66 (maxima) of a copy's speed, in one
// run, to 0.84 and 1.3; without asking ahead it was 0.58 and 0.8: one core's loads wait.
// Maxima: across and then down keeps the order row-major, so of ties the first stays. A NaN is only
// looked for on the way; rows that met one are made again by the steps that order NaNs too.
// Layout: dense NCHW, or NCDHW whose windows are one plane deep. Bytes: x and y once. FLOPs per
// output: S stride + R (a NaN: twice). Deterministic: a row depends on no other.
// Source: separable reductions are folklore.
#include "pool_separable.h"

#include "pool_frame.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kMostEdges = 8, kMostRows = 16;
// Rows of outputs made at a time where both steps are one.
constexpr int64_t kPlaneRows = 32;

// Outputs [first, last) of a row read inside of it.
struct Inner {
  int64_t first, last;
};
Inner inner_of(const PoolProblem& p) {
  const int64_t step = p.stride[2], room = p.in[2] + p.padding[2] - p.kernel[2];
  const int64_t first = (p.padding[2] + step - 1) / step;
  const int64_t last = room < 0 ? 0 : room / step + 1;
  return {first, last < p.out[2] ? last : p.out[2]};
}

template <class A>
struct Separable {
  using L = lane_t<A>;
  const CpuPoolCall& call;
  const PoolProblem& p;
  const PoolLines<A>& lines;
  const int64_t H, W, P, Q, R, S, planes;  // planes of every depth
  const int64_t x_bytes;                   // of one element of x and y
  Step step, exact_step;
  int shape;
  bool maxima, in_place, out_in_place, keep_byte, keep_place;
  int64_t room;  // elements of one line
  RowEdge edge[kMostEdges];
  RowWindows windows{};
  A *ring, *copied, *out, *size;
  L *ring_taps, *seen;
  uint8_t* byte;
  int64_t place[kMostRows * 3];  // of a tap, counted from the window's corner
  int plane_kind;                // or -1: the steps are made one by one
  A *beside[3], *kept;           // see plane_rows

  Separable(const CpuPoolCall& c, const PoolLines<A>& l, Arena& arena)
      : call(c),
        p(c.p),
        lines(l),
        H(p.in[1]),
        W(p.in[2]),
        P(p.out[1]),
        Q(p.out[2]),
        R(p.kernel[1]),
        S(p.kernel[2]),
        planes(p.N * p.C * p.in[0]),
        x_bytes(c.dtype == DType::kFloat64   ? 8
                : c.dtype == DType::kFloat32 ? 4
                                             : 2) {
    maxima = c.kind == PoolKind::kMax;
    keep_byte = c.index_kind == PoolIndex::kByte, keep_place = c.index_kind == PoolIndex::kLong;
    step = maxima ? (keep_byte || keep_place ? Step::kMaxTap : Step::kMax)
           : c.kind == PoolKind::kLp && c.power == 2 ? Step::kLp
                                                     : Step::kSum;
    shape = step_shape(S, p.stride[2]);
    const Inner inner = inner_of(p);
    in_place = x_bytes == static_cast<int64_t>(sizeof(A)) && inner.last - inner.first >= l.lanes;
    out_in_place = x_bytes == static_cast<int64_t>(sizeof(A)) && Q >= l.lanes;
    const int64_t whole = (Q + l.lanes - 1) / l.lanes * l.lanes;
    room = whole + l.lanes;
    windows.padding = p.padding[2];
    windows.first = in_place ? inner.first : 0, windows.last = in_place ? inner.last : whole;
    windows.left = in_place && p.padding[2] == 1 && inner.last >= l.lanes;
    windows.right = in_place && p.stride[2] == 1 && S == 3 && Q == inner.last + 1;
    if (windows.left) windows.first = 0;
    // Copied rows have their padding, but a tap in it may not be chosen.
    if (in_place || step == Step::kMaxTap)
      for (int64_t q = windows.left ? inner.last : 0; q < Q - windows.right; ++q) {
        if (q == inner.first && q < inner.last) q = inner.last;
        if (q >= Q - windows.right) break;
        const PoolTaps taps = pool_taps(p, 2, q);
        edge[windows.edges++] = {q, taps.first, taps.last};
      }
    windows.edge = edge;
    ring = arena.take<A>(R * room);
    ring_taps = arena.take<L>(maxima ? R * room : 0);
    copied = arena.take<A>(in_place ? 0 : copied_room(whole));
    out = arena.take<A>(out_in_place ? 0 : room);
    byte = arena.take<uint8_t>(keep_place || (keep_byte && !out_in_place) ? room : 0);
    size = arena.take<A>(maxima ? 0 : room);
    seen = arena.take<L>(l.lanes);
    plane_kind = plane_applies(inner) ? plane_shape(S, p.stride[2]) : -1;
    for (A*& line : beside) line = arena.take<A>(plane_kind < 0 ? 0 : W + 4);
    kept = arena.take<A>(plane_kind < 0 ? 0 : 2 * whole);
    if (arena.base != nullptr) fill(whole);
  }
  int64_t copied_room(int64_t whole) const {
    const int64_t read = whole * p.stride[2] + S, row = p.padding[2] + W;
    return (read > row ? read : row) + lines.lanes;
  }

  bool plane_applies(const Inner& inner) const {
    return in_place && out_in_place && (step == Step::kMax || !maxima) && R == S &&
           p.stride[1] == p.stride[2] && inner.first <= 1 && inner.last >= Q - 1 &&
           p.padding[2] <= 1;
  }

  void fill(int64_t whole) {
    for (A* line : beside)
      for (int64_t i = 0; plane_kind >= 0 && i < W + 4; ++i)
        line[i] = maxima ? -A(__builtin_inff()) : A(0);
    if (!in_place) {
      const int64_t n = copied_room(whole);
      for (int64_t i = 0; i < n; ++i) copied[i] = maxima ? -A(__builtin_inff()) : A(0);
    }
    if (!maxima)
      for (int64_t i = 0; i < room; ++i)
        size[i] = i >= Q                       ? A(1)
                  : step == Step::kLp          ? static_cast<A>(whole_taps(S) / call.count[2][i])
                  : call.kind == PoolKind::kLp ? static_cast<A>(call.count[2][i] / whole_taps(S))
                                               : static_cast<A>(call.count[2][i]);
    for (int64_t i = 0; keep_place && i < R * S; ++i) place[i] = i / S * W + i % S;
  }
  double whole_taps(int64_t taps) const { return call.rescale ? static_cast<double>(taps) : 1.0; }
  A rows_size(int64_t j) const {
    const double counted = call.count[0][0] * call.count[1][j];
    if (call.kind != PoolKind::kLp) return static_cast<A>(counted);
    const double whole = whole_taps(R);
    return static_cast<A>(step == Step::kLp ? whole / counted : counted / whole);
  }

  void run(int64_t begin, int64_t end) const {
    for (int64_t task = begin; task < end;) {
      const int64_t plane = task / P, from = task % P;
      const int64_t to = end - task < P - from ? from + (end - task) : P;
      rows(plane, from, to);
      task += to - from;
    }
  }

  void rows(int64_t plane, int64_t from, int64_t to) const {
    for (int64_t i = 0; i < lines.lanes; ++i) seen[i] = 0;
    if (plane_kind >= 0)
      plane_rows(plane, from, to);
    else
      reduce(step, plane, from, to);
    if (!maxima) return;
    L nan = 0;
    for (int64_t i = 0; i < lines.lanes; ++i) nan |= seen[i];
    if (nan != 0) reduce(Step::kMaxExact, plane, from, to);
  }

  // Rows of padding are read from beside[0]; the tensor's first and last row, whose neighbours may
  // not be read, from copies in the others.
  void plane_rows(int64_t plane, int64_t from, int64_t to) const {
    const auto make = lines.plane[static_cast<int>(step)][plane_kind];
    const int64_t step_rows = p.stride[1], reach = (Q - 1) * p.stride[2] - p.padding[2] + S;
    const A* rows[kPlaneRows * 2 + 1];
    A rows_sizes[kPlaneRows];
    PlaneRows<A> in{rows,       p.padding[2], reach > W ? reach - W : 0, 0, Q, nullptr, kept,
                    rows_sizes, size};
    for (int64_t j = from; j < to; j += in.rows) {
      in.rows = to - j < kPlaneRows ? to - j : kPlaneRows;
      in.y = static_cast<A*>(call.result) + (plane * P + j) * Q;
      const int64_t origin = j * step_rows - p.padding[1];
      for (int64_t i = 0; i < (in.rows - 1) * step_rows + R; ++i) {
        const int64_t h = origin + i, number = plane * H + h;
        const A* x = static_cast<const A*>(call.x) + number * W;
        rows[i] = h < 0 || h >= H            ? beside[0] + 1
                  : number == 0              ? beside_row(beside[1], x)
                  : number + 1 == planes * H ? beside_row(beside[2], x)
                                             : x;
      }
      for (int64_t t = 0; t < in.rows && !maxima; ++t) rows_sizes[t] = rows_size(j + t);
      make(in, seen);
    }
  }
  const A* beside_row(A* line, const A* x) const {
    std::memcpy(line + 1, x, W * sizeof(A));
    return line + 1;
  }

  void reduce(Step kind, int64_t plane, int64_t from, int64_t to) const {
    const auto across = lines.across[static_cast<int>(kind)][shape];
    const A* line[kMostRows];
    const L* taps[kMostRows];
    L row_tap[kMostRows];
    WindowLines<A> lines_of{line, taps, row_tap, 0, A(1), size};
    int64_t made = 0, slot = 0;  // rows before `made` are lines, the last one in slot - 1
    for (int64_t j = from; j < to; ++j) {
      const int64_t origin = j * p.stride[1] - p.padding[1];
      const int64_t first = origin < 0 ? 0 : origin, last = origin + R < H ? origin + R : H;
      for (made = made < first ? first : made; made < last; ++made) {
        across(row(plane * H + made), windows, ring + slot * room, ring_taps + slot * room, seen);
        slot = slot + 1 < R ? slot + 1 : 0;
      }
      const int64_t n = last - first;
      int64_t at = slot >= n ? slot - n : slot - n + R;
      for (int64_t r = 0; r < n; ++r) {
        line[r] = ring + at * room;
        taps[r] = ring_taps + at * room;
        row_tap[r] = static_cast<L>((first - origin + r) * S);
        at = at + 1 < R ? at + 1 : 0;
      }
      lines_of.rows = n;
      if (!maxima) lines_of.rows_size = rows_size(j);
      const int64_t to_row = (plane * P + j) * Q;
      A* y = out_in_place ? static_cast<A*>(call.result) + to_row : out;
      uint8_t* index = static_cast<uint8_t*>(call.index) + to_row;
      uint8_t* bytes = keep_byte && out_in_place ? index : keep_byte || keep_place ? byte : nullptr;
      lines.down[static_cast<int>(kind)][n == 2 ? 0 : n == 3 ? 1 : 2](lines_of, y, bytes, Q);
      if (!out_in_place)
        lines.store(call.dtype, out, static_cast<char*>(call.result) + to_row * x_bytes, Q);
      if (keep_byte && !out_in_place) std::memcpy(index, byte, Q);
      if (keep_place) put_places(plane, origin, static_cast<int64_t*>(call.index) + to_row);
    }
  }

  const A* row(int64_t number) const {
    const char* x = static_cast<const char*>(call.x) + number * W * x_bytes;
    if (in_place) return reinterpret_cast<const A*>(x);
    lines.load(call.dtype, x, copied + p.padding[2], W);
    return copied + p.padding[2];
  }

  void put_places(int64_t plane, int64_t origin, int64_t* to) const {
    const int64_t corner = (plane % p.in[0] * H + origin) * W - p.padding[2];
    for (int64_t q = 0; q < Q; ++q) to[q] = corner + q * p.stride[2] + place[byte[q]];
  }
};

}  // namespace

bool pool_separable_applies(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const bool sums = call.kind == PoolKind::kSum ||
                    (call.kind == PoolKind::kLp && (call.power == 1 || call.power == 2));
  if (call.backward || call.channels_last || !(sums || call.kind == PoolKind::kMax)) return false;
  const bool flat = p.kernel[0] == 1 && p.stride[0] == 1 && p.padding[0] == 0;
  const bool rows =
      p.stride[1] > 0 && p.kernel[1] <= kMostRows && (p.dilation[1] == 1 || p.kernel[1] == 1);
  const bool taps = (p.kernel[2] == 2 || p.kernel[2] == 3) && p.dilation[2] == 1 &&
                    (p.stride[2] == 1 || p.stride[2] == 2);
  if (!flat || !rows || !taps) return false;
  const Inner inner = inner_of(p);
  const int64_t within = inner.last > inner.first ? inner.last - inner.first : 0;
  return p.out[2] - within <= kMostEdges;
}

template <class A>
PoolWork pool_separable_work(const CpuPoolCall& call, const PoolLines<A>& lines) {
  Arena arena{nullptr};
  const Separable<A> separable(call, lines, arena);
  return {separable.planes * separable.P, arena.bytes};
}
template <class A>
void pool_separable(const CpuPoolCall& call, const PoolLines<A>& lines, int64_t begin, int64_t end,
                    char* scratch) {
  Arena arena{scratch};
  const Separable<A> separable(call, lines, arena);
  separable.run(begin, end);
}

template PoolWork pool_separable_work(const CpuPoolCall&, const PoolLines<float>&);
template PoolWork pool_separable_work(const CpuPoolCall&, const PoolLines<double>&);
template void pool_separable(const CpuPoolCall&, const PoolLines<float>&, int64_t, int64_t, char*);
template void pool_separable(const CpuPoolCall&, const PoolLines<double>&, int64_t, int64_t, char*);

}  // namespace fastconv::cpu
