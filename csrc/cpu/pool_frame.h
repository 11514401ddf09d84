// How the rows of a tensor become lines, in three frames:
//   kColumns  NCHW, a plane at a time; vectors over the columns of a row.
//   kPixels   NHWC, an image at a time; a line is [W, C], vectors over C.
//   kPlanes   NCHW, `width` planes at a time, transposed to [W, width] lines on their way: for rows
//             whose windows differ in their taps (adaptive axes), or that have too few of them.
// A row that is already a line, fp32 in fp32, is used in place.
#pragma once
#include <cstring>

#include "pool_lines.h"

namespace fastconv::cpu {

enum class PoolLayout { kColumns, kPixels, kPlanes };

// One thread's scratch, handed out in order; with base = nullptr only `bytes` is meaningful.
struct Arena {
  char* base;
  int64_t bytes = 0;
  template <class T>
  T* take(int64_t n) {
    T* here = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return here;
  }
};

// The windows along one axis.
struct Window {
  int64_t origin, first, last;  // taps [first, last) lie in the input
};

template <class A>
struct PoolFrame {
  const CpuPoolCall& call;
  const PoolProblem& p;
  const PoolLines<A>& lines;
  PoolLayout layout;
  int64_t planes, width, groups;  // planes in all; per group in one line; groups
  bool narrow_type;               // 16-bit storage
  bool strips;                    // kPlanes: windows are read row by row, vectors along the row
  A* transposed = nullptr;        // one row in storage type on its way to or from a line

  PoolFrame(const CpuPoolCall& c, const PoolLines<A>& l)
      : call(c), p(c.p), lines(l), planes(c.p.N * c.p.C) {
    narrow_type = c.dtype == DType::kBFloat16 || c.dtype == DType::kFloat16;
    // Windows of long rows, or so few or so far apart that vectors over columns are mostly empty.
    const bool apart = (p.out[2] <= 2 && p.kernel[2] >= 4) || p.stride[2] >= 8;
    layout = c.channels_last         ? PoolLayout::kPixels
             : p.adaptive() || apart ? PoolLayout::kPlanes
                                     : PoolLayout::kColumns;
    const bool plain = c.kind == PoolKind::kMax || c.kind == PoolKind::kSum ||
                       (c.kind == PoolKind::kLp && (c.backward || c.power == 2 || c.power == 1));
    // Forward, what the lanes of a maximum hold has to be sorted out once per window.
    const int64_t least = c.kind == PoolKind::kMax && !c.backward ? 128 : 8;
    strips = layout == PoolLayout::kPlanes && plain && p.dilation[2] == 1 && p.kernel[2] >= least;
    width = layout == PoolLayout::kPixels ? p.C : 1;
    if (layout == PoolLayout::kPlanes) {
      // As many vectors side by side as keep the rows of a window in the second cache, and as
      // leave work for every thread.
      width = 4 * lines.lanes;
      const int64_t rows = p.kernel[0] * p.kernel[1] * p.in[2] * static_cast<int64_t>(sizeof(A));
      const int64_t tasks = planes * p.out[0] * p.out[1];
      while (width > lines.lanes && ((!strips && width * rows > (256 << 10)) || tasks < 16 * width))
        width /= 2;
      if (width > planes) width = planes;
    }
    groups = layout == PoolLayout::kPixels ? p.N : (planes + width - 1) / width;
  }

  int64_t slack() const { return lines.lanes; }
  // Elements of one row, and of the buffer that holds it.
  int64_t length(const int64_t* extents) const { return extents[2] * width; }
  int64_t room(const int64_t* extents) const { return length(extents) + slack(); }
  // Whether rows lie in memory as lines that vectors of `run` elements each may read and write.
  bool in_place(int64_t run) const {
    return !narrow_type && layout != PoolLayout::kPlanes && run >= lines.lanes;
  }

  // Row (a, b) of a group in a tensor of the extents; of the group's first plane in kPlanes.
  int64_t at(const int64_t* extents, int64_t group, int64_t a, int64_t b) const {
    if (layout == PoolLayout::kPlanes) group *= width;
    const int64_t row = (group * extents[0] + a) * extents[1] + b;
    return row * extents[2] * (layout == PoolLayout::kPixels ? width : 1);
  }
  int64_t planes_of(int64_t group) const {
    const int64_t left = planes - group * width;
    return left < width ? left : width;
  }
  int64_t element() const { return narrow_type ? 2 : static_cast<int64_t>(sizeof(A)); }

  const A* row(const void* x, const int64_t* extents, int64_t group, int64_t a, int64_t b,
               A* buffer) const {
    const char* from = static_cast<const char*>(x) + at(extents, group, a, b) * element();
    if (layout != PoolLayout::kPlanes) {
      lines.load(call.dtype, from, buffer, length(extents));
      return buffer;
    }
    const int64_t plane = extents[0] * extents[1] * extents[2];
    if (narrow_type) {
      gather(reinterpret_cast<const uint16_t*>(from), plane, planes_of(group), extents[2],
             reinterpret_cast<uint16_t*>(transposed));
      lines.load(call.dtype, transposed, buffer, length(extents));
    } else {
      gather(reinterpret_cast<const A*>(from), plane, planes_of(group), extents[2], buffer);
    }
    return buffer;
  }
  void put(const A* line, void* y, const int64_t* extents, int64_t group, int64_t a,
           int64_t b) const {
    char* to = static_cast<char*>(y) + at(extents, group, a, b) * element();
    const int64_t plane = extents[0] * extents[1] * extents[2];
    if (layout != PoolLayout::kPlanes || plane == 1)
      return lines.store(call.dtype, line, to, plane == 1 ? planes_of(group) : length(extents));
    if (narrow_type) {
      lines.store(call.dtype, line, transposed, length(extents));
      scatter(reinterpret_cast<const uint16_t*>(transposed), plane, planes_of(group), extents[2],
              reinterpret_cast<uint16_t*>(to));
    } else {
      scatter(line, plane, planes_of(group), extents[2], reinterpret_cast<A*>(to));
    }
  }

  // What a row of outputs took, [Q, width]; places: of a tap, counted from its window's corner.
  void put_index(const lane_t<A>* taps, const int64_t* places, const Window* const* windows,
                 int64_t group, int64_t o, int64_t j) const {
    const bool bytes = call.index_kind == PoolIndex::kByte;
    const int64_t first = at(p.out, group, o, j), Q = p.out[2];
    uint8_t* byte = static_cast<uint8_t*>(call.index) + first;
    int64_t* place = static_cast<int64_t*>(call.index) + first;
    if (bytes && layout != PoolLayout::kPlanes) return lines.narrow(taps, byte, Q * width);
    const int64_t count = layout == PoolLayout::kPlanes ? planes_of(group) : width;
    const int64_t step = layout == PoolLayout::kPlanes ? p.out_size() : 1;
    const int64_t step_q = layout == PoolLayout::kPlanes ? 1 : width;
    const int64_t corner = (windows[0][o].origin * p.in[1] + windows[1][j].origin) * p.in[2];
    for (int64_t q = 0; q < Q; ++q) {
      const int64_t origin = corner + windows[2][q].origin;
      for (int64_t c = 0; c < count; ++c) {
        const int64_t to = q * step_q + c * step;
        const lane_t<A> chosen = taps[q * width + c];
        if (bytes)
          byte[to] = static_cast<uint8_t>(chosen);
        else
          place[to] = origin + places[chosen];
      }
    }
  }

  // [count, n], `plane` elements from one to the next, to [n, width] and back, in square tiles.
  template <class T>
  void gather(const T* from, int64_t plane, int64_t count, int64_t n, T* to) const {
    for (int64_t i = 0; i < n; i += 8)
      for (int64_t g = 0; g < count; ++g)
        for (int64_t k = i; k < i + 8 && k < n; ++k) to[k * width + g] = from[g * plane + k];
  }
  template <class T>
  void scatter(const T* from, int64_t plane, int64_t count, int64_t n, T* to) const {
    for (int64_t i = 0; i < n; i += 8)
      for (int64_t g = 0; g < count; ++g)
        for (int64_t k = i; k < i + 8 && k < n; ++k) to[g * plane + k] = from[k * width + g];
  }
};

// Which line of a ring holds which row. Rows are numbered by two axes; `deep` and `high` rows of
// them are held at a time. Divisions are made once, here and below: a row has no time for them.
struct LineRing {
  int64_t deep, high;
  int64_t* held = nullptr;
  int64_t *first = nullptr, *second = nullptr;  // slot(a, b) = first[a] + second[b]

  int64_t slots() const { return deep * high; }
  void allocate(Arena& arena, const int64_t* extents) {
    held = arena.take<int64_t>(slots());
    first = arena.take<int64_t>(extents[0]);
    second = arena.take<int64_t>(extents[1]);
    if (arena.base == nullptr) return;
    for (int64_t i = 0; i < slots(); ++i) held[i] = -1;
    for (int64_t i = 0; i < extents[0]; ++i) first[i] = i % deep * high;
    for (int64_t i = 0; i < extents[1]; ++i) second[i] = i % high;
  }
  int64_t slot(int64_t a, int64_t b) const { return first[a] + second[b]; }
  // Whether the slot still has to be filled with the row.
  bool take(int64_t slot, int64_t row) const {
    if (held[slot] == row) return false;
    held[slot] = row;
    return true;
  }
};

// A row of the input in phases: entry i of phase j is x[i * stride + j - padding], so that tap s of
// output q is entry q + s * dilation / stride of phase s * dilation % stride, and a vector of
// outputs reads a contiguous vector per tap, whatever the stride.
struct Phases {
  int64_t stride, dilation, padding, width, taps, length;

  explicit Phases(const PoolProblem& p)
      : stride(p.stride[2] == 0 ? 1 : p.stride[2]),  // adaptive rows are not split
        dilation(p.dilation[2]),
        padding(p.padding[2]),
        width(p.in[2]),
        taps(p.kernel[2]),
        length(p.out[2] + (p.kernel[2] - 1) * p.dilation[2] / stride) {}

  int64_t size() const { return stride * length; }
  int64_t place(int64_t s) const { return s * dilation % stride * length + s * dilation / stride; }
  // Whether any tap falls into the phase.
  bool used(int64_t phase) const {
    if (dilation == 1) return phase < taps;
    for (int64_t s = 0; s < taps && s < stride; ++s)
      if (s * dilation % stride == phase) return true;
    return false;
  }
  // The entries [first, first + count) of a phase are the elements from, from + stride, ... of x.
  struct Run {
    int64_t first, count, from;
  };
  Run* runs = nullptr;  // of every phase; none of those that no tap falls into
  bool paired =
      false;  // stride 2, and the row begins with one phase's first entry, then the other's

  void allocate(Arena& arena) {
    runs = arena.take<Run>(stride);
    if (arena.base == nullptr) return;
    for (int64_t j = 0; j < stride; ++j) runs[j] = used(j) ? run(j) : Run{0, 0, 0};
    paired =
        stride == 2 && runs[0].count > 0 && runs[1].count > 0 && runs[0].from + runs[1].from == 1;
  }
  Run run(int64_t phase) const {
    const int64_t lead = padding - phase;
    const int64_t first = lead <= 0 ? 0 : (lead + stride - 1) / stride;
    const int64_t from = first * stride - lead;
    int64_t count = from >= width ? 0 : (width - from + stride - 1) / stride;
    if (first + count > length) count = length > first ? length - first : 0;
    return {first, count, from};
  }

  // x [W] into `out`, whose other entries are left as they are.
  template <class A>
  void split(const PoolLines<A>& lines, const A* x, A* out) const {
    if (stride == 1) {
      std::memcpy(out + runs[0].first, x + runs[0].from, runs[0].count * sizeof(A));
      return;
    }
    int64_t done = 0;
    if (paired) {
      const int64_t even = runs[1].from == 0;  // the phase that begins the row
      A* to[2] = {out + runs[0].first, out + length + runs[1].first};
      done = runs[0].count < runs[1].count ? runs[0].count : runs[1].count;
      lines.split(x, to[even], to[1 - even], done);
    }
    for (int64_t j = 0; j < stride; ++j) {
      A* to = out + j * length + runs[j].first;
      const A* at = x + runs[j].from;
      for (int64_t i = done; i < runs[j].count; ++i) to[i] = at[i * stride];
    }
  }
};

inline Window* take_windows(Arena& arena, const PoolProblem& p, int axis) {
  Window* windows = arena.take<Window>(p.out[axis]);
  for (int64_t i = 0; arena.base != nullptr && i < p.out[axis]; ++i) {
    const PoolTaps taps = pool_taps(p, axis, i);
    windows[i] = {p.origin(axis, i), taps.first, taps.last};
  }
  return windows;
}

}  // namespace fastconv::cpu
