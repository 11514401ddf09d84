// Pooling, forward:
//   y[n,c,o,p,q] = reduce over (t,r,s) of x[n, c, ..., q*stride - padding + s*dilation]
//
// One output row at a time, as reductions of lines (pool_lines.h), in one of four ways:
//   kTall   NCHW sums: the window's T R rows, straight from the input, into one line [W]; then,
//           from its phases, the S taps of every column.
//   kBroad  NCHW maxima: the S taps of each input row, once, into a ring of lines [Q]; then the
//           window's T R lines. A line of taps beside each keeps the order row-major.
//   kSlide  NCHW, stride 2, up to 16 taps: rows with their padding in a ring, every tap of the
//           window from them, even and odd columns told apart in registers.
//   kWhole  every tap of the window at once, in row-major order: NHWC (per pixel, vectors over C),
//           planes side by side, and what cannot be separated: drawing and its expectation.
// The most common windows, NCHW with two or three taps along a row, have pool_separable.cpp; NHWC
// windows of 2x2/2, 3x3/1 and 3x3/2 with all their taps, and without an index, pool_pixels.h.
// Layouts: dense NCDHW and NDHWC. Bytes: x and y once. FLOPs per output: T R stride + S (kTall),
// S stride + T R (kBroad), T R S (kSlide, kWhole; drawing twice that and 20 for its number).
// 8x64x112x112 fp32, 3x3/2, NHWC, two threads of an AMD EPYC (family 25, model 1): 1.06 (averages)
// to 1.2 (norms) of a copy's speed, in one run; with taps that are not compiled in, a division per
// sum and no asking ahead 0.6 to 0.67. Drawing: 0.13 (NCHW), bound by arithmetic.
// Deterministic: a row depends on no other.
// Sources: separable (van Herk-like) reductions are folklore; drawing: pool_sample.h.
#include <utility>

#include "pool_frame.h"
#include "pool_passes.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kMostPixelRows = 3, kSplits = 8, kSplitElements = 1 << 15;

enum class Way { kTall, kBroad, kWhole, kSlide };

template <class A>
struct Forward : PoolFrame<A> {
  using L = lane_t<A>;
  using Frame = PoolFrame<A>;
  using Frame::call, Frame::p, Frame::lines, Frame::layout, Frame::width;

  Phases phases;
  const Window* windows[3];
  const int64_t Q, out_length;
  Way way;
  Reduce kind;
  double raised;  // the power that rows are raised to before they are reduced; 1: none
  bool index, deep, row_in_place, out_in_place, piecewise, counted;
  LineRing ring;
  int64_t like_first, like_last;  // outputs whose windows have every tap inside
  int64_t ring_room;              // elements of one line of the ring
  A *parts, *ring_lines, *split, *tall, *buffer, *out, *count, *uniform;
  L *ring_taps, *taps, *first_tap, *row_tap, *tap;
  int64_t *offset, *places, tap_room;
  const A** rows;
  // Of few large windows of pixels, channels are tasks of their own; these are the current one's.
  int64_t splits = 1, part_from = 0, part_to;
  int pixel_shape;  // of lines.pixels, or -1
  L* seen;
  const L** row_taps;

  static int64_t reach(const PoolProblem& p, int axis) {
    const int64_t span = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
    return span < p.in[axis] ? span : p.in[axis];
  }

  Forward(const CpuPoolCall& c, const PoolLines<A>& l, Arena& arena)
      : Frame(c, l), phases(c.p), Q(c.p.out[2]), out_length(c.p.out[2] * width) {
    index = c.index_kind != PoolIndex::kNone;
    deep = p.kernel[0] > 1;
    const bool columns = layout == PoolLayout::kColumns;
    const bool sums = c.kind == PoolKind::kSum || c.kind == PoolKind::kLp;
    way = !columns                   ? Way::kWhole
          : sums                     ? Way::kTall
          : c.kind == PoolKind::kMax ? Way::kBroad
                                     : Way::kWhole;
    raised = c.kind == PoolKind::kLp && c.power != 2 ? c.power : 1;
    kind = c.kind == PoolKind::kMax                  ? (index ? Reduce::kMaxTap : Reduce::kMax)
           : c.kind == PoolKind::kSample             ? Reduce::kDraw
           : c.kind == PoolKind::kExpectation        ? Reduce::kMean
           : c.kind == PoolKind::kLp && c.power == 2 ? Reduce::kSquares
                                                     : Reduce::kSum;
    // Small windows of stride 2.
    if (columns && way != Way::kWhole && p.stride[2] == 2 && p.dilation[2] == 1 &&
        p.kernel_size() <= 16)
      way = Way::kSlide;
    row_in_place = raised == 1 && Frame::in_place(columns ? p.in[2] : width);
    out_in_place = Frame::in_place(columns ? Q : width);
    piecewise = layout == PoolLayout::kPixels && width % lines.lanes == 0 &&
                width >= 8 * lines.lanes && kind != Reduce::kDraw && kind != Reduce::kMean;
    ring = {reach(p, 0), way == Way::kBroad && deep ? p.in[1] : reach(p, 1)};
    const bool split_rows = way == Way::kWhole && columns;
    ring_room = (way == Way::kSlide   ? 2 * (Q + 2 * Frame::slack()) + p.kernel[2] + p.in[2]
                 : way == Way::kBroad ? Q
                 : split_rows         ? phases.size()
                                      : Frame::length(p.in)) +
                Frame::slack();
    const bool ringless = row_in_place && (way == Way::kTall || !columns);
    if (Frame::strips)
      ring_room = Frame::narrow_type ? p.kernel[2] + Frame::slack() : 0;
    else if (ringless)
      ring_room = 0;
    const bool placed = index || c.kind == PoolKind::kSample;
    ring_lines = arena.take<A>(ring.slots() * ring_room);
    ring_taps = arena.take<L>(way == Way::kBroad && index ? ring.slots() * ring_room : 0);
    ring.allocate(arena, p.in);
    if (columns) phases.allocate(arena);
    for (int axis = 0; axis < 3; ++axis) windows[axis] = take_windows(arena, p, axis);
    like_first = like_last = 0;
    if (arena.base != nullptr) find_alike();
    const bool small = p.kernel[1] == p.kernel[2] && p.stride[1] == p.stride[2] &&
                       p.dilation[1] == 1 && p.dilation[2] == 1 && !deep;
    const bool plain = c.kind == PoolKind::kMax ? !index : sums && raised == 1;
    pixel_shape = layout == PoolLayout::kPixels && width >= l.lanes && small && plain
                      ? plane_shape(p.kernel[2], p.stride[2])
                      : -1;
    const bool all_at_once = pixel_shape >= 0 && inside(p, 1) && inside(p, 2);
    seen = arena.take<L>(l.lanes);
    part_to = width;
    if (layout == PoolLayout::kPixels && row_in_place && out_in_place && !index &&
        (sums || kind == Reduce::kMax) && p.out_size() == 1 &&
        p.kernel_size() * width >= kSplitElements && Frame::groups < kSplits)
      splits = most_splits();
    parts = arena.take<A>(columns ? 0 : 3 * (width + Frame::slack()));
    split = arena.take<A>(columns ? phases.size() + Frame::slack() : 0);
    tall = arena.take<A>(columns ? Frame::room(p.in) : 0);
    buffer = arena.take<A>(columns ? Frame::room(p.in) : 0);
    Frame::transposed = arena.take<A>(
        layout == PoolLayout::kPlanes ? (Frame::strips ? Q : p.in[2] + Q) * width : 0);
    out = arena.take<A>(out_in_place ? 0 : out_length + Frame::slack());
    taps = arena.take<L>(placed ? out_length + Frame::slack() : 0);
    counted = sums && !all_at_once;
    count = arena.take<A>(counted ? out_length : 0);
    uniform = arena.take<A>(c.kind == PoolKind::kSample ? out_length + Frame::slack() : 0);
    first_tap = arena.take<L>(columns && placed ? Q + Frame::slack() : 0);
    const int64_t most = p.kernel[0] * p.kernel[1];
    rows = arena.take<const A*>(most);
    row_taps = arena.take<const L*>(most);
    row_tap = arena.take<L>(most);
    // As many as are reduced at once: a global window has thousands.
    const bool whole = inside(p, 0) && inside(p, 1) && inside(p, 2);
    tap_room = Frame::strips ? 0
               : !columns && whole && p.kernel_size() > most_at_once() && may_be_pieces() &&
                       p.kernel[2] > kPart
                   ? kPart
                   : p.kernel[2];
    offset = arena.take<int64_t>(tap_room);
    tap = arena.take<L>(tap_room);
    places = arena.take<int64_t>(c.index_kind == PoolIndex::kLong ? p.kernel_size() : 0);
    if (arena.base != nullptr) fill();
  }

  int64_t most_splits() const {
    const int64_t most = width / (4 * lines.lanes), wanted = kSplits / Frame::groups;
    return most < 1 ? 1 : most < wanted ? most : wanted;
  }
  // Whether every window has all its taps.
  static bool inside(const PoolProblem& p, int axis) {
    return p.stride[axis] > 0 && p.padding[axis] == 0 &&
           p.origin(axis, p.out[axis] - 1) + (p.kernel[axis] - 1) * p.dilation[axis] < p.in[axis];
  }
  void find_alike() {
    if (p.stride[2] == 0) return;
    const auto whole = [&](int64_t q) {
      return windows[2][q].first == 0 && windows[2][q].last == p.kernel[2];
    };
    while (like_first < Q && !whole(like_first)) ++like_first;
    like_last = like_first;
    while (like_last < Q && whole(like_last)) ++like_last;
  }

  void fill() {
    const bool columns = layout == PoolLayout::kColumns;
    const A outside =
        call.kind == PoolKind::kMax || call.kind == PoolKind::kSample ? -A(__builtin_inff()) : A(0);
    if (columns) {
      const int64_t n = phases.size() + Frame::slack();
      for (int64_t i = 0; i < n; ++i) split[i] = outside;
      if (way == Way::kWhole || way == Way::kSlide)
        for (int64_t i = 0; i < ring.slots() * ring_room; ++i) ring_lines[i] = outside;
    }
    for (int64_t s = 0; s < tap_room; ++s) {
      offset[s] = columns ? phases.place(s) : s * p.dilation[2] * width;
      tap[s] = static_cast<L>(s);
    }
    if (counted)
      for (int64_t q = 0; q < Q; ++q)
        for (int64_t c = 0; c < width; ++c) count[q * width + c] = static_cast<A>(call.count[2][q]);
    if (columns && (index || call.kind == PoolKind::kSample))
      for (int64_t q = 0; q < Q + Frame::slack(); ++q)
        first_tap[q] = q < Q ? static_cast<L>(windows[2][q].first) : 0;
    if (call.index_kind == PoolIndex::kLong)
      for (int64_t t = 0, i = 0; t < p.kernel[0]; ++t)
        for (int64_t r = 0; r < p.kernel[1]; ++r)
          for (int64_t s = 0; s < p.kernel[2]; ++s)
            places[i++] =
                (t * p.dilation[0] * p.in[1] + r * p.dilation[1]) * p.in[2] + s * p.dilation[2];
  }

  Reads<A> reads(int64_t n_rows) const {
    Reads<A> in{};
    in.row = rows, in.index = row_taps, in.row_tap = row_tap, in.rows = n_rows;
    in.offset = offset, in.tap = tap, in.taps = p.kernel[2], in.times = 1;
    return in;
  }
  void reduce(Reduce r, const Reads<A>& in, A* to, L* to_taps, int64_t n) const {
    lines.reduce[static_cast<int>(r)](in, to, to_taps, n);
  }

  // Row (d, h) of the input as a line, raised.
  const A* input(int64_t group, int64_t d, int64_t h, A* into) const {
    if (row_in_place) return static_cast<const A*>(call.x) + Frame::at(p.in, group, d, h);
    Frame::row(call.x, p.in, group, d, h, into);
    if (raised != 1) lines.raise(into, raised, into, Frame::length(p.in));
    return into;
  }

  // The line that the window reads for row (d, h).
  const A* window_row(int64_t group, int64_t d, int64_t h, const L** line_taps) const {
    if (ring_room == 0) return input(group, d, h, nullptr);
    const int64_t slot = ring.slot(d, h), row = (group * p.in[0] + d) * p.in[1] + h;
    A* line = ring_lines + slot * ring_room;
    L* beside = way == Way::kBroad && index ? ring_taps + slot * ring_room : nullptr;
    *line_taps = beside;
    if (!ring.take(slot, row)) return line;
    if (way == Way::kSlide) {  // the padding before it stays as it was filled
      A* x = line + p.padding[2];
      Frame::row(call.x, p.in, group, d, h, x);
      if (raised != 1) lines.raise(x, raised, x, p.in[2]);
      return line;
    }
    if (way == Way::kTall || layout != PoolLayout::kColumns) return input(group, d, h, line);
    const A* x = input(group, d, h, buffer);
    if (way == Way::kWhole) {
      phases.split(lines, x, line);
      return line;
    }
    broad(x, line, beside, 0);
    return line;
  }

  // The maxima of one input row's taps.
  void broad(const A* x, A* to, L* to_taps, L base) const {
    phases.split(lines, x, split);
    const A* from = split;
    Reads<A> in = reads(1);
    in.row = &from, in.row_tap = &base, in.first = index ? first_tap : nullptr, in.first_tap = base;
    reduce(kind, in, to, to_taps, Q);
  }

  void run(int64_t begin, int64_t end) {
    if (splits > 1) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task % splits, vectors = width / lines.lanes;
        part_from = part * vectors / splits * lines.lanes;
        part_to = part + 1 == splits ? width : (part + 1) * vectors / splits * lines.lanes;
        output_row(task / splits, 0, 0);
      }
      return;
    }
    int64_t j = begin % p.out[1], o = begin / p.out[1] % p.out[0];
    int64_t group = begin / p.out[1] / p.out[0];
    for (int64_t task = begin; task < end; ++task) {
      output_row(group, o, j);
      if (++j < p.out[1]) continue;
      j = 0;
      if (++o < p.out[0]) continue;
      o = 0, ++group;
    }
  }

  void output_row(int64_t group, int64_t o, int64_t j) const {
    const Window &t = windows[0][o], &r = windows[1][j];
    A* y = out_in_place ? static_cast<A*>(call.result) + Frame::at(p.out, group, o, j) : out;
    if (Frame::strips)
      strip_row(group, t, r, y);
    else
      reduce_row(group, o, j, y);
    if (pixel_shape < 0 || r.first > 0 || r.last < p.kernel[1] || like_first == like_last)
      finish(o, j, y, 0, Q);
    if (!out_in_place) Frame::put(y, call.result, p.out, group, o, j);
    if (index) Frame::put_index(taps, places, windows, group, o, j);
  }

  // Sums of outputs [from, to) to what they stand for.
  void finish(int64_t o, int64_t j, A* y, int64_t from, int64_t to) const {
    if (from == to ||
        (call.kind != PoolKind::kLp && (call.kind != PoolKind::kSum || call.divisor == 1)))
      return;
    const A rows_counted = static_cast<A>(call.count[0][o] * call.count[1][j]);
    const double power = call.kind == PoolKind::kLp ? call.power : 1;
    const int64_t at = from * width + part_from, n = (to - from - 1) * width + part_to - part_from;
    lines.finish(y + at, count + at, rows_counted, static_cast<A>(call.scale), power, y + at, n);
  }

  // Small windows of pixels: those with all their taps at once, the others as ever.
  void pixel_row(int64_t n, int64_t o, int64_t j, A* y) const {
    const bool sums = kind == Reduce::kSum;
    const Step step = kind == Reduce::kMax ? Step::kMax : sums ? Step::kSum : Step::kLp;
    const A* from[kMostPixelRows];
    for (int64_t i = 0; i < n; ++i) from[i] = rows[i] + windows[2][like_first].origin * width;
    const A size = call.kind == PoolKind::kLp
                       ? A(1)  // as whole windows are of a norm, scaled or not
                       : static_cast<A>(call.count[0][o] * call.count[1][j]) *
                             static_cast<A>(call.count[2][like_first]);
    for (int64_t i = 0; i < lines.lanes; ++i) seen[i] = 0;
    lines.pixels[static_cast<int>(step)][pixel_shape](
        {from, like_last - like_first, width, y + like_first * width, size}, seen);
    L nan = 0;
    for (int64_t i = 0; i < lines.lanes; ++i) nan |= seen[i];
    if (nan != 0) return whole_row(n, 0, y, 0, Q);
    whole_row(n, 0, y, 0, like_first);
    whole_row(n, 0, y, like_last, Q);
    finish(o, j, y, 0, like_first);
    finish(o, j, y, like_last, Q);
  }

  void reduce_row(int64_t group, int64_t o, int64_t j, A* y) const {
    const Window &t = windows[0][o], &r = windows[1][j];
    const int64_t S = p.kernel[2];
    int64_t n = 0;
    for (int64_t a = t.first; a < t.last; ++a)
      for (int64_t b = r.first; b < r.last; ++b, ++n) {
        const int64_t d = t.origin + a * p.dilation[0], h = r.origin + b * p.dilation[1];
        row_tap[n] = static_cast<L>((a * p.kernel[1] + b) * S);
        rows[n] = window_row(group, d, h, row_taps + n);
      }
    const L first = static_cast<L>((t.first * p.kernel[1] + r.first) * S);
    if (call.kind == PoolKind::kSample) draw_numbers(group, o, j);
    if (pixel_shape >= 0 && r.first == 0 && r.last == p.kernel[1] && like_first < like_last)
      pixel_row(n, o, j, y);
    else if (way == Way::kSlide)
      slide_row(n, first, y);
    else if (way == Way::kTall)
      tall_row(n, y);
    else if (way == Way::kBroad)
      broad_row(n, first, y);
    else
      whole_row(n, first, y, 0, Q);
  }

  // A line [Q, width] of windows read row by row, where the rows lie.
  void strip_row(int64_t group, const Window& t, const Window& r, A* y) const {
    const int64_t plane = p.in_size(), planes = Frame::planes_of(group);
    const auto strip =
        lines
            .strip[static_cast<int>(index || call.kind == PoolKind::kMax ? Reduce::kMaxTap : kind)];
    for (int64_t q = 0; q < Q; ++q) {
      const Window& s = windows[2][q];
      const int64_t length = s.last - s.first;
      L* to_taps = index ? taps + q * width : nullptr;
      // The rows of planes [g, g + 1) or all of them.
      for (int64_t g = 0; g < planes; g += Frame::narrow_type ? 1 : planes) {
        int64_t n = 0;
        for (int64_t a = t.first; a < t.last; ++a)
          for (int64_t b = r.first; b < r.last; ++b, ++n) {
            const int64_t d = t.origin + a * p.dilation[0], h = r.origin + b * p.dilation[1];
            const int64_t at = Frame::at(p.in, group, d, h) + g * plane + s.origin + s.first;
            row_tap[n] = static_cast<L>((a * p.kernel[1] + b) * p.kernel[2] + s.first);
            rows[n] = static_cast<const A*>(call.x) + at;
            if (!Frame::narrow_type) continue;
            A* line = ring_lines + n * p.kernel[2];
            lines.load(call.dtype, static_cast<const uint16_t*>(call.x) + at, line, length);
            rows[n] = line;
          }
        if (Frame::narrow_type)
          strip(rows, row_tap, n, length, 0, 1, y + q * width + g, index ? to_taps + g : nullptr);
        else
          strip(rows, row_tap, n, length, plane, planes, y + q * width, to_taps);
      }
    }
  }

  void tall_row(int64_t n, A* y) const {
    static constexpr int64_t kHere[1] = {0};
    Reads<A> in = reads(n);
    in.offset = kHere, in.taps = 1;
    // With stride 1 there is one phase, and the line is made where it lies.
    const Phases::Run& all = phases.runs[0];
    const bool direct = phases.stride == 1 && all.count == p.in[2] && p.in[2] >= lines.lanes;
    reduce(kind, in, direct ? split + all.first : tall, nullptr, p.in[2]);
    if (!direct) phases.split(lines, tall, split);
    const A* from = split;
    in = reads(1);
    in.row = &from;
    reduce(Reduce::kSum, in, y, nullptr, Q);
  }

  void slide_row(int64_t n, L first, A* y) const {
    Reads<A> in = reads(n);
    in.first = index ? first_tap : nullptr, in.first_tap = first;
    lines.slide[static_cast<int>(kind)](in, y, taps, Q);
  }

  void broad_row(int64_t n, L first, A* y) const {
    static constexpr int64_t kHere[1] = {0};
    static constexpr L kNone[1] = {0};
    Reads<A> in = reads(n);
    in.offset = kHere, in.tap = kNone, in.taps = 1;
    in.first = index ? first_tap : nullptr, in.first_tap = first;
    reduce(index ? Reduce::kMaxLine : Reduce::kMax, in, y, taps, Q);
  }

  void whole_row(int64_t n, L first, A* y, int64_t begin, int64_t end) const {
    Reads<A> in = reads(n);
    in.uniform = uniform;
    if (layout == PoolLayout::kColumns) {
      in.first = first_tap, in.first_tap = first;
      return reduce(kind, in, y, taps, Q);
    }
    for (int64_t q = begin; q < end; q += in.times) {
      const Window& s = windows[2][q];
      in.base = s.origin * width + part_from;
      in.offset = offset + s.first, in.tap = tap + s.first, in.taps = s.last - s.first;
      in.first_tap = first + static_cast<L>(s.first);
      in.uniform = uniform + q * width;
      in.times = 1;
      const bool pieces = n * in.taps > most_at_once() && may_be_pieces();
      if (q == like_first && q < like_last && like_last <= end && !pieces)
        in.times = like_last - like_first, in.step = p.stride[2] * width, in.out_step = width;
      const int64_t at = q * width + part_from;
      if (pieces)
        in_pieces(in, s.first, y + at, taps + at, part_to - part_from);
      else
        reduce(kind, in, y + at, taps + at, part_to - part_from);
    }
  }

  // A large window in pieces: of few taps, where there are many channels, so that memory is read in
  // long runs; and of sums a part at a time, so that rounding errors do not add up over the whole.
  static constexpr int64_t kPiece = 8, kPart = 64;
  bool may_be_pieces() const {
    return piecewise || kind == Reduce::kSum || kind == Reduce::kSquares;
  }
  int64_t most_at_once() const { return piecewise ? 4 * kPiece : kPart; }
  // whole: n channels of it, its taps counted from `first`.
  void in_pieces(const Reads<A>& whole, int64_t first, A* y, L* to_taps, int64_t n) const {
    const bool sums = kind == Reduce::kSum || kind == Reduce::kSquares;
    const int64_t piece = piecewise ? kPiece : kPart, pitch = p.dilation[2] * width;
    A *total = parts, *next = parts + width + Frame::slack();
    A* part = next + width + Frame::slack();
    Reads<A> in = whole;
    L piece_tap;
    in.rows = 1, in.times = 1, in.row_tap = &piece_tap, in.offset = offset, in.tap = tap;
    int64_t done = 0;  // taps of this part
    bool any = false;  // parts
    for (int64_t r = 0; r < whole.rows; ++r)
      for (int64_t k = 0; k < whole.taps; k += piece) {
        in.row = rows + r, piece_tap = row_tap[r] + static_cast<L>(first + k);
        in.base = whole.base + (first + k) * pitch;
        in.taps = whole.taps - k < piece ? whole.taps - k : piece;
        in.more = done > 0;
        in.ahead = piece * pitch;
        reduce(kind, in, sums ? part : y, to_taps, n);
        done += in.taps;
        const bool last = r + 1 == whole.rows && k + piece >= whole.taps;
        // Without pieces every reduction is a part: only those carry on from what is there.
        if (!sums || (piecewise && done < kPart && !last)) continue;
        static constexpr int64_t kHere[1] = {0};
        const A* both[2] = {part, total};
        Reads<A> add{};
        add.row = both, add.rows = any ? 2 : 1, add.offset = kHere, add.taps = 1, add.times = 1;
        reduce(Reduce::kSum, add, last ? y : next, nullptr, n);
        std::swap(total, next);
        any = true, done = 0;
      }
  }

  // By the outputs' places in the contiguous [N, C, O, P, Q].
  void draw_numbers(int64_t group, int64_t o, int64_t j) const {
    const uint64_t size = p.out_size(), row = (o * p.out[1] + j) * Q;
    if (layout == PoolLayout::kColumns)
      return lines.uniform(*call.seed, group * size + row, 1, uniform, Q);
    for (int64_t q = 0; q < Q; ++q)
      lines.uniform(*call.seed, group * width * size + row + q, size, uniform + q * width, width);
  }
};

}  // namespace

template <class A>
PoolWork pool_forward_work(const CpuPoolCall& call, const PoolLines<A>& lines) {
  Arena arena{nullptr};
  const Forward<A> forward(call, lines, arena);
  return {forward.groups * call.p.out[0] * call.p.out[1] * forward.splits, arena.bytes};
}
template <class A>
void pool_forward(const CpuPoolCall& call, const PoolLines<A>& lines, int64_t begin, int64_t end,
                  char* scratch) {
  Arena arena{scratch};
  Forward<A> forward(call, lines, arena);
  forward.run(begin, end);
}

template PoolWork pool_forward_work(const CpuPoolCall&, const PoolLines<float>&);
template PoolWork pool_forward_work(const CpuPoolCall&, const PoolLines<double>&);
template void pool_forward(const CpuPoolCall&, const PoolLines<float>&, int64_t, int64_t, char*);
template void pool_forward(const CpuPoolCall&, const PoolLines<double>&, int64_t, int64_t, char*);

}  // namespace fastconv::cpu
