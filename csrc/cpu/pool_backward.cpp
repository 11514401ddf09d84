// Pooling, backward: dx[n,c,d,h,w] = sum over the outputs that reach it of what they send back.
//
// One row of dx at a time, a gather: nothing is added twice or by two threads. An output row
// becomes a line once, in a ring: of a maximum dy, and beside it the tap that was taken; of a sum
// its share, dy over the window's size (Lp: times y^(1-power)). Sums are separable: the lines of
// the output rows that reach a row of dx are added up first, then every element adds up the outputs
// that reach it. Maxima compare taps, output by output. Vectors lie over the columns of one residue
// modulo the stride (NCHW; for the most common windows both residues at once) or over C (NHWC, and
// planes side by side: pool_frame.h).
// Layouts: dense NCDHW and NDHWC. Bytes: dy (index, or x and y) and dx once. FLOPs per element of
// dx: T R S / stride^rank for maxima, (T R + S) / stride for sums. Bound by memory. Deterministic:
// in the order of the outputs, whatever the threads.
#include "pool_frame.h"
#include "pool_passes.h"

namespace fastconv::cpu {
namespace {

template <class A>
struct Backward : PoolFrame<A> {
  using L = lane_t<A>;
  using Frame = PoolFrame<A>;
  using Frame::call, Frame::p, Frame::lines, Frame::layout, Frame::width;

  const int64_t W, Q;
  bool maxima, columns, line_in_place, row_in_place;
  void (*send)(const Reads<A>&, A* dx, int64_t n) = nullptr;
  int64_t margin = 0, line_room;  // zeros before a line, so that every residue reads whole vectors
  LineRing ring;
  A *ring_lines, *sent, *buffer, *dy_line, *y_line, *x_line, *parts, *count;
  L *ring_taps, *row_tap, *tap;
  const A** rows;
  const L** row_taps;
  int64_t *offset, *list;  // elements of one residue (kColumns) or column: [list[i], list[i + 1])
  // kPixels, kPlanes: how much further column i reads than the one a period before, which is read
  // by the same taps; -1 if they differ otherwise.
  int64_t* shift;
  int64_t period;
  int64_t lists;
  struct Residue {
    int64_t from, count;
  };
  Residue* residues;
  int64_t part_room;
  const Window* windows;           // along W
  const PoolOutputs* reaching[2];  // the outputs that reach each input
  struct Made {
    const A* row;
    int64_t group;
    PoolOutputs o, r;
  };
  mutable Made made{};  // the row of dx made last

  static int64_t most_outputs(const PoolProblem& p, int axis) {
    int64_t most = 1;
    for (int64_t i = 0; i < p.in[axis]; ++i) {
      const PoolOutputs o = pool_outputs(p, axis, i);
      if (o.last - o.first > most) most = o.last - o.first;
    }
    return most;
  }
  const PoolOutputs* take_reaching(Arena& arena, int axis) const {
    PoolOutputs* all = arena.take<PoolOutputs>(p.in[axis]);
    for (int64_t i = 0; arena.base != nullptr && i < p.in[axis]; ++i)
      all[i] = pool_outputs(p, axis, i);
    return all;
  }
  // The first column of residue i, and how many there are.
  int64_t from(int64_t i) const {
    return ((i - p.padding[2]) % p.stride[2] + p.stride[2]) % p.stride[2];
  }
  int64_t columns_of(int64_t i) const {
    return from(i) < W ? (W - from(i) + p.stride[2] - 1) / p.stride[2] : 0;
  }

  Backward(const CpuPoolCall& c, const PoolLines<A>& l, Arena& arena)
      : Frame(c, l), W(c.p.in[2]), Q(c.p.out[2]) {
    maxima = c.kind == PoolKind::kMax;
    columns = layout == PoolLayout::kColumns;
    const bool whole = c.kind == PoolKind::kSum && c.divisor == 1;
    line_in_place = (maxima || whole) && !columns && Frame::in_place(width);
    row_in_place = Frame::in_place(!columns ? width : p.stride[2] == 1 ? W : lines.lanes);
    lists = columns ? p.stride[2] : Frame::strips ? 0 : W;
    int64_t end = Q, entries = 0;
    if (columns) {
      for (int64_t s = 0; s < p.kernel[2]; ++s) {
        const int64_t i = s * p.dilation[2] % p.stride[2], first = output_of(i, s);
        if (-first > margin) margin = -first;
        if (first + columns_of(i) > end) end = first + columns_of(i);
      }
      entries = p.kernel[2];
    } else {
      for (int64_t q = 0; q < Q; ++q) {
        const PoolTaps s = pool_taps(p, 2, q);
        entries += s.last - s.first;
      }
    }
    // Windows of two or three taps, two columns apart, have an operation of their own.
    if (maxima && columns && p.stride[2] == 2 && p.dilation[2] == 1 && p.padding[2] <= 1 &&
        (p.kernel[2] == 2 || p.kernel[2] == 3))
      send = lines.send[p.kernel[2] - 2][p.padding[2]];
    if (send != nullptr && (W + 1) / 2 + 2 > end) end = (W + 1) / 2 + 2;
    line_room = margin + end * width + Frame::slack();
    ring = {most_outputs(p, 0), most_outputs(p, 1)};
    ring_lines = arena.take<A>(line_in_place ? 0 : ring.slots() * line_room);
    ring_taps = arena.take<L>(maxima ? ring.slots() * line_room : 0);
    ring.allocate(arena, p.out);
    windows = take_windows(arena, p, 2);
    for (int axis = 0; axis < 2; ++axis) reaching[axis] = take_reaching(arena, axis);
    sent = arena.take<A>(maxima ? 0 : line_room);
    buffer = arena.take<A>(Frame::room(p.in));
    dy_line = arena.take<A>(maxima ? 0 : Frame::room(p.out));
    y_line = arena.take<A>(c.kind == PoolKind::kLp ? Frame::room(p.out) : 0);
    x_line = arena.take<A>(c.kind == PoolKind::kLp ? Frame::room(p.in) : 0);
    part_room = columns ? columns_of(0) + 1 + Frame::slack() : 0;
    parts = arena.take<A>(columns ? p.stride[2] * part_room : 0);
    residues = arena.take<Residue>(columns ? lists : 0);
    count = arena.take<A>(maxima ? 0 : Q * width);
    Frame::transposed = arena.take<A>(layout == PoolLayout::kPlanes ? (W + Q) * width : 0);
    rows = arena.take<const A*>(ring.slots());
    row_taps = arena.take<const L*>(ring.slots());
    row_tap = arena.take<L>(ring.slots());
    offset = arena.take<int64_t>(entries);
    tap = arena.take<L>(entries);
    list = arena.take<int64_t>(lists + 1);
    // In order where a pixel's vector reaches into the next one's place.
    period = p.stride[2] == 0 || width < lines.lanes ? 1 : p.stride[2];
    shift = arena.take<int64_t>(columns ? 0 : lists);
    if (arena.base != nullptr) fill();
  }

  // The output whose tap s lies on the first column of residue i; may lie outside the row.
  int64_t output_of(int64_t i, int64_t s) const {
    return (from(i) + p.padding[2] - s * p.dilation[2]) / p.stride[2];
  }

  void fill() {
    if (!line_in_place)
      for (int64_t i = 0; i < ring.slots() * line_room; ++i) ring_lines[i] = 0;
    if (maxima)
      for (int64_t i = 0; i < ring.slots() * line_room; ++i) ring_taps[i] = -1;
    else
      for (int64_t i = 0; i < line_room; ++i) sent[i] = 0;
    if (!maxima)
      for (int64_t q = 0; q < Q; ++q)
        for (int64_t c = 0; c < width; ++c) count[q * width + c] = static_cast<A>(call.count[2][q]);
    int64_t n = 0;
    for (int64_t i = 0; i < lists; ++i) {
      list[i] = n;
      if (columns) {
        residues[i] = {from(i), columns_of(i)};
        // In the order of the outputs: the last tap reaches back to the first output.
        for (int64_t s = p.kernel[2] - 1; s >= 0; --s)
          if (s * p.dilation[2] % p.stride[2] == i) add(n++, output_of(i, s), s);
        continue;
      }
      const PoolOutputs qs = pool_outputs(p, 2, i);
      for (int64_t q = qs.first; q < qs.last; ++q) {
        const int64_t s = pool_tap_on(p, 2, q, i);
        if (s >= 0) add(n++, q * width, s);
      }
    }
    list[lists] = n;
    for (int64_t i = 0; !columns && i < lists; ++i) shift[i] = i < period ? -1 : shift_of(i);
  }
  int64_t shift_of(int64_t i) const {
    const int64_t here = list[i], before = list[i - period], n = list[i + 1] - here;
    if (n != list[i - period + 1] - before) return -1;
    const int64_t by = n == 0 ? 0 : offset[here] - offset[before];
    for (int64_t k = 0; k < n; ++k) {
      if (offset[here + k] - offset[before + k] != by) return -1;
      if (maxima && tap[here + k] != tap[before + k]) return -1;
    }
    return by;
  }
  void add(int64_t n, int64_t at, int64_t s) const {
    offset[n] = at;
    tap[n] = static_cast<L>(s);
  }

  void reduce(Reduce r, const Reads<A>& in, A* to, int64_t n) const {
    lines.reduce[static_cast<int>(r)](in, to, nullptr, n);
  }

  // What output row (o, j) sends back.
  const A* output_row(int64_t group, int64_t o, int64_t j, const L** line_taps) const {
    const int64_t slot = ring.slot(o, j), at = Frame::at(p.out, group, o, j), n = Q * width;
    const int64_t row = (group * p.out[0] + o) * p.out[1] + j;
    A* line = ring_lines + slot * line_room + margin;
    const A* dy = line_in_place ? static_cast<const A*>(call.dy) + at : line;
    L* taps = ring_taps + slot * line_room + margin;
    *line_taps = taps;
    if (!ring.take(slot, row)) return dy;
    if (maxima) {
      if (!line_in_place) Frame::row(call.dy, p.out, group, o, j, line);
      const uint8_t* bytes = static_cast<const uint8_t*>(call.index) + at;
      if (layout != PoolLayout::kPlanes) {
        lines.widen(bytes, taps, n);
        return dy;
      }
      for (int64_t g = 0; g < Frame::planes_of(group); ++g)
        for (int64_t q = 0; q < Q; ++q) taps[q * width + g] = bytes[g * p.out_size() + q];
      return dy;
    }
    if (line_in_place) return dy;
    const A counted = static_cast<A>(call.count[0][o] * call.count[1][j]);
    const bool lp = call.kind == PoolKind::kLp;
    const bool there = Frame::in_place(lines.lanes);  // lines of either length are only read
    dy = there ? static_cast<const A*>(call.dy) + at
               : Frame::row(call.dy, p.out, group, o, j, dy_line);
    const A* y = nullptr;
    if (lp)
      y = there ? static_cast<const A*>(call.y) + at
                : Frame::row(call.y, p.out, group, o, j, y_line);
    lines.share(dy, y, count, counted, static_cast<A>(call.scale), lp ? call.power : 1, line, n);
    return line;
  }

  void run(int64_t begin, int64_t end) const {
    int64_t h = begin % p.in[1], d = begin / p.in[1] % p.in[0];
    int64_t group = begin / p.in[1] / p.in[0];
    for (int64_t task = begin; task < end; ++task) {
      input_row(group, d, h);
      if (++h < p.in[1]) continue;
      h = 0;
      if (++d < p.in[0]) continue;
      d = 0, ++group;
    }
  }

  void input_row(int64_t group, int64_t d, int64_t h) const {
    const PoolOutputs o = reaching[0][d], r = reaching[1][h];
    if (Frame::strips) return strip_row(group, d, h, o, r);
    A* dx = row_in_place ? static_cast<A*>(call.result) + Frame::at(p.in, group, d, h) : buffer;
    const bool again = call.kind == PoolKind::kSum && made.row != nullptr && group == made.group &&
                       o.first == made.o.first && o.last == made.o.last &&
                       r.first == made.r.first && r.last == made.r.last;
    if (!again)
      make_row(group, d, h, o, r, dx);
    else if (dx != made.row)
      std::memcpy(dx, made.row, Frame::length(p.in) * sizeof(A));
    made = {dx, group, o, r};
    if (!row_in_place) Frame::put(dx, call.result, p.in, group, d, h);
  }

  // What reaches row (d, h): the lines of its output rows or, of sums, the one line of them all.
  Reads<A> collect(int64_t group, int64_t d, int64_t h, PoolOutputs o, PoolOutputs r) const {
    int64_t n = 0;
    for (int64_t i = o.first; i < o.last; ++i) {
      const int64_t t = pool_tap_on(p, 0, i, d);
      if (t < 0) continue;
      for (int64_t j = r.first; j < r.last; ++j) {
        const int64_t b = pool_tap_on(p, 1, j, h);
        if (b < 0) continue;
        row_tap[n] = static_cast<L>((t * p.kernel[1] + b) * p.kernel[2]);
        rows[n] = output_row(group, i, j, row_taps + n);
        ++n;
      }
    }
    Reads<A> in{};
    in.row = rows, in.index = row_taps, in.row_tap = row_tap, in.rows = n, in.times = 1;
    if (maxima || n == 0) return in;
    static constexpr int64_t kHere[1] = {0};
    in.offset = kHere, in.taps = 1;
    if (n > 1 || columns) {
      add_up(in);
      rows[0] = sent + margin;
    }
    in.rows = 1;
    return in;
  }

  void make_row(int64_t group, int64_t d, int64_t h, PoolOutputs o, PoolOutputs r, A* dx) const {
    const A* x = nullptr;
    if (call.kind == PoolKind::kLp && call.power != 1) {
      x = static_cast<const A*>(call.x) + Frame::at(p.in, group, d, h);
      if (!Frame::in_place(lines.lanes)) x = Frame::row(call.x, p.in, group, d, h, x_line);
    }
    Reads<A> in = collect(group, d, h, o, r);
    const Reduce kind = maxima ? Reduce::kSend : Reduce::kSum;
    if (!columns) {
      // While a piece of dx is in the first cache, it is also multiplied by x.
      const int64_t piece = 2048 / width + 1;
      for (int64_t from = 0; from < W; from += piece) {
        const int64_t to = from + piece < W ? from + piece : W;
        for (int64_t i = from; i < from + period && i < to; ++i)
          for (int64_t w = i; w < to; w += in.times * period) {
            in.offset = offset + list[w], in.tap = tap + list[w], in.taps = list[w + 1] - list[w];
            in.times = 1;
            const int64_t next = w + period;
            if (next < to) in.step = shift[next], in.out_step = period * width;
            while (w + in.times * period < to && in.step >= 0 &&
                   shift[w + in.times * period] == in.step)
              ++in.times;
            reduce(kind, in, dx + w * width, width);
          }
        if (x != nullptr)
          lines.chain(x + from * width, call.power, dx + from * width, (to - from) * width);
      }
      return;
    }
    if (send != nullptr) return send(in, dx, W);
    const int64_t stride = p.stride[2], room = part_room;
    for (int64_t i = 0; i < stride; ++i) {
      in.offset = offset + list[i], in.tap = tap + list[i], in.taps = list[i + 1] - list[i];
      reduce(kind, in, stride == 1 ? dx : parts + residues[i].from * room, residues[i].count);
    }
    if (stride > 1) {
      int64_t done = 0;
      if (stride == 2) lines.join(parts, parts + room, dx, done = W / 2);
      for (int64_t i = 0; i < stride; ++i)
        for (int64_t k = done; i + k * stride < W; ++k) dx[i + k * stride] = parts[i * room + k];
    }
    if (x != nullptr) lines.chain(x, call.power, dx, W);
  }

  // Row (d, h) of each plane by itself: long runs of one value, or a few elements among zeros.
  void strip_row(int64_t group, int64_t d, int64_t h, PoolOutputs o, PoolOutputs r) const {
    const Reads<A> in = collect(group, d, h, o, r);
    for (int64_t g = 0; g < Frame::planes_of(group); ++g) {
      const int64_t at = Frame::at(p.in, group, d, h) + g * p.in_size();
      A* dx = Frame::narrow_type ? buffer : static_cast<A*>(call.result) + at;
      if (maxima)
        strip_maxima(in, g, dx);
      else
        strip_sums(in.rows > 0 ? rows[0] + g : nullptr, dx);
      if (call.kind == PoolKind::kLp && call.power != 1) {
        const A* x = static_cast<const A*>(call.x) + at;
        if (Frame::narrow_type) {
          lines.load(call.dtype, static_cast<const uint16_t*>(call.x) + at, x_line, W);
          x = x_line;
        }
        lines.chain(x, call.power, dx, W);
      }
      if (Frame::narrow_type)
        lines.store(call.dtype, dx, static_cast<uint16_t*>(call.result) + at, W);
    }
  }

  void strip_sums(const A* values, A* dx) const {
    int64_t done = 0;  // everything before is written
    for (int64_t q = 0; values != nullptr && q < Q; ++q) {
      const Window& s = windows[q];
      const int64_t begin = s.origin + s.first, end = s.origin + s.last;
      const A value = values[q * width];
      if (begin > done) std::memset(dx + done, 0, (begin - done) * sizeof(A));
      for (int64_t i = begin; i < done && i < end; ++i) dx[i] += value;
      const int64_t fresh = begin > done ? begin : done;
      if (fresh < end) lines.fill(value, dx + fresh, end - fresh);
      if (end > done) done = end;
    }
    if (done < W) std::memset(dx + done, 0, (W - done) * sizeof(A));
  }

  void strip_maxima(const Reads<A>& in, int64_t g, A* dx) const {
    std::memset(dx, 0, W * sizeof(A));
    for (int64_t n = 0; n < in.rows; ++n)
      for (int64_t q = 0; q < Q; ++q) {
        const int64_t s = row_taps[n][q * width + g] - row_tap[n];
        if (s >= 0 && s < p.kernel[2]) dx[windows[q].origin + s] += rows[n][q * width + g];
      }
  }

  // The sum of the rows, with its margins as they were: a vector may not reach into them.
  void add_up(const Reads<A>& in) const {
    const int64_t n = Q * width;
    A* to = sent + margin;
    reduce(Reduce::kSum, in, n < lines.lanes ? dy_line : to, n);
    if (n < lines.lanes) std::memcpy(to, dy_line, n * sizeof(A));
  }
};

}  // namespace

template <class A>
PoolWork pool_backward_work(const CpuPoolCall& call, const PoolLines<A>& lines) {
  Arena arena{nullptr};
  const Backward<A> backward(call, lines, arena);
  return {backward.groups * call.p.in[0] * call.p.in[1], arena.bytes};
}
template <class A>
void pool_backward(const CpuPoolCall& call, const PoolLines<A>& lines, int64_t begin, int64_t end,
                   char* scratch) {
  Arena arena{scratch};
  const Backward<A> backward(call, lines, arena);
  backward.run(begin, end);
}

template PoolWork pool_backward_work(const CpuPoolCall&, const PoolLines<float>&);
template PoolWork pool_backward_work(const CpuPoolCall&, const PoolLines<double>&);
template void pool_backward(const CpuPoolCall&, const PoolLines<float>&, int64_t, int64_t, char*);
template void pool_backward(const CpuPoolCall&, const PoolLines<double>&, int64_t, int64_t, char*);

}  // namespace fastconv::cpu
