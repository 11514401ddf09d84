// Packers of the im2col algorithm: from strided tensors to the operands of the register tile,
// one depth block at a time. Padding is written as zeros here and nowhere else.
#pragma once
#include "conv_im2col.h"
#include "conv_im2col_copy.h"

namespace fastconv::cpu::FC_ISA {
namespace {

constexpr int kMaxColumns = 64;  // widest panel of any instruction set

// Consecutive pixels on one row of the grid.
struct PixelRun {
  int64_t n, at[2], q, len;  // image, first two grid coordinates, first of the last, how many
};

template <class F>
FC_INLINE void for_each_run(const Im2colGemm& g, int64_t begin, int64_t end, const F& f) {
  const int64_t P = g.axis[1].grid, Q = g.axis[2].grid;
  int64_t n = begin / g.pixels_per_image, rest = begin % g.pixels_per_image;
  int64_t q = rest % Q;
  rest /= Q;
  int64_t p = rest % P, o = rest / P;
  for (int64_t m = begin; m < end;) {
    const int64_t len = im2col_min(Q - q, end - m);
    f(PixelRun{n, {o, p}, q, len}, m - begin);
    m += len;
    q = 0;
    if (++p == P) {
      p = 0;
      if (++o == g.axis[0].grid) {
        o = 0;
        ++n;
      }
    }
  }
}

struct Tap {
  int64_t offset[3];  // source coordinate of pixel 0
  int64_t filter;     // element offset into a weight-shaped tensor
};

FC_INLINE Tap tap_at(const Im2colGemm& g, const int64_t (&filter_stride)[3], int64_t index) {
  Tap tap{};
  for (int axis = 2; axis >= 0; --axis) {
    const Im2colAxis& a = g.axis[axis];
    const int64_t t = index % a.taps;
    index /= a.taps;
    tap.offset[axis] = a.offset + t * a.offset_step;
    tap.filter += (a.tap + t * a.tap_step) * filter_stride[axis];
  }
  return tap;
}

// The taps from one on, in order, without the divisions of tap_at.
class TapWalk {
 public:
  FC_INLINE TapWalk(const Im2colGemm& g, const int64_t (&filter_stride)[3], int64_t first)
      : g_(g), filter_stride_(filter_stride) {
    for (int axis = 2; axis >= 0; --axis) {
      at_[axis] = first % g.axis[axis].taps;
      first /= g.axis[axis].taps;
    }
  }
  FC_INLINE Tap tap() const {
    Tap tap{};
    for (int axis = 0; axis < 3; ++axis) {
      const Im2colAxis& a = g_.axis[axis];
      tap.offset[axis] = a.offset + at_[axis] * a.offset_step;
      tap.filter += (a.tap + at_[axis] * a.tap_step) * filter_stride_[axis];
    }
    return tap;
  }
  FC_INLINE void next() {
    for (int axis = 2; axis >= 0 && ++at_[axis] == g_.axis[axis].taps; --axis) at_[axis] = 0;
  }

 private:
  const Im2colGemm& g_;
  const int64_t (&filter_stride_)[3];
  int64_t at_[3];
};

// Where a run reads at one tap: elements [low, high) of the run lie inside the source, the first of
// them at `offset` elements from the channel's base. Empty runs have low == high == len.
struct Window {
  int64_t low, high, offset;
};

FC_INLINE Window window_of(const Im2colGemm& g, const Tap& tap, const PixelRun& run) {
  const Im2colAxis &d = g.axis[0], &h = g.axis[1], &w = g.axis[2];
  const int64_t id = run.at[0] * d.step + tap.offset[0], ih = run.at[1] * h.step + tap.offset[1];
  if (id < 0 || id >= d.source || ih < 0 || ih >= h.source) return {run.len, run.len, 0};
  const int64_t iw = run.q * w.step + tap.offset[2];
  int64_t low = 0, high = run.len;
  if (iw < 0) low = (-iw + w.step - 1) / w.step;
  if (iw + (run.len - 1) * w.step >= w.source)
    high = iw >= w.source ? 0 : (w.source - 1 - iw) / w.step + 1;
  if (low >= high) return {run.len, run.len, 0};
  return {low, high,
          run.n * g.gather.n + id * g.gather.s[0] + ih * g.gather.s[1] +
              (iw + low * w.step) * g.gather.s[2]};
}

// The channels of one tap that fall into depths [begin, end): first channel, count, and the place
// of the first and the step between channels in the depth block.
struct ChannelSpan {
  int64_t first, count, at, step;
};

FC_INLINE ChannelSpan channels_of(const Im2colGemm& g, int64_t tap, int64_t begin, int64_t end) {
  if (begin == 0 && end == g.depth)  // the usual case where channels are few: no divisions
    return {0, g.channels, g.tap_inner ? tap : tap * g.channels, g.tap_inner ? g.taps : 1};
  const int64_t step = g.tap_inner ? g.taps : 1;
  const int64_t origin = g.tap_inner ? tap : tap * g.channels;
  const int64_t first = begin > origin ? (begin - origin + step - 1) / step : 0;
  const int64_t last = end > origin ? im2col_min(g.channels, (end - origin + step - 1) / step) : 0;
  return {first, last > first ? last - first : 0, origin + first * step - begin, step};
}

FC_INLINE void tap_range(const Im2colGemm& g, int64_t begin, int64_t end, int64_t* first,
                         int64_t* last) {
  *first = g.tap_inner ? 0 : begin / g.channels;
  *last = g.tap_inner ? g.taps : (end - 1) / g.channels + 1;
}

// kAcross: panel [end - begin][width] of pixels [pixel, pixel + n).
template <class T, class S>
void pack_pixel_panel(const Im2colGemm& g, const S* src, int64_t pixel, int64_t n, int64_t width,
                      int64_t begin, int64_t end, T* dst) {
  PixelRun runs[kMaxColumns];
  int64_t start[kMaxColumns];
  int run_count = 0;
  for_each_run(g, pixel, pixel + n, [&](const PixelRun& run, int64_t at) {
    runs[run_count] = run;
    start[run_count++] = at;
  });
  if (n < width) zero_columns(dst + n, width, end - begin, width - n);
  int64_t first, last;
  if (begin >= end) return;
  tap_range(g, begin, end, &first, &last);
  TapWalk walk(g, g.other.s, first);
  for (int64_t t = first; t < last; ++t, walk.next()) {
    const ChannelSpan span = channels_of(g, t, begin, end);
    if (span.count == 0) continue;
    const Tap tap = walk.tap();
    T* out = dst + span.at * width;
    const int64_t step = span.step * width;
    const S* base = src + span.first * g.gather.c;
    for (int i = 0; i < run_count; ++i) {
      const Window win = window_of(g, tap, runs[i]);
      T* at = out + start[i];
      if (win.low > 0) zero_columns(at, step, span.count, win.low);
      if (win.low < win.high)
        copy_columns(at + win.low, step, base + win.offset, g.gather.c, span.count,
                     win.high - win.low, g.axis[2].step * g.gather.s[2]);
      if (win.high < runs[i].len)
        zero_columns(at + win.high, step, span.count, runs[i].len - win.high);
    }
  }
}

// kAcross, one tap that samples short rows (a 1x1 filter of stride 2 over 14x14 pixels): all panels
// of pixels [pixel, pixel + n) at once, channel by channel. One panel alone reads two or three rows
// of every plane, a cache line that no prefetcher foresees for seven elements; channel by channel
// the planes lie one behind the other. False for everything else, which is copied faster by panels.
template <class T, class S>
bool pack_sampled_panels(const Im2colGemm& g, const S* src, int64_t pixel, int64_t n, int64_t lanes,
                         int64_t NR, int64_t begin, int64_t end, T* dst) {
  constexpr int kMostPieces = 64;
  constexpr int64_t kShort = 8;  // from here on copy_columns has vectors
  if (g.taps != 1 || g.axis[2].step == 1 || g.axis[2].grid >= kShort) return false;
  struct Piece {  // what is of one run and of one panel
    int64_t from, to, step, n;
  } pieces[kMostPieces];
  int count = 0;
  bool whole = true;  // no padding, and not too many pieces
  const int64_t stride = g.axis[2].step * g.gather.s[2], depth = end - begin;
  const auto width_at = [&](int64_t panel) { return n - panel <= lanes ? lanes : NR; };
  const Tap tap = tap_at(g, g.other.s, 0);
  for_each_run(g, pixel, pixel + n, [&](const PixelRun& run, int64_t at) {
    const Window win = window_of(g, tap, run);
    whole = whole && win.low == 0 && win.high == run.len;
    for (int64_t i = 0; whole && i < run.len;) {
      const int64_t column = (at + i) % NR, panel = at + i - column;
      const int64_t len = im2col_min(run.len - i, NR - column);
      whole = count < kMostPieces;
      if (whole)
        pieces[count++] = {win.offset + i * stride, panel * depth + column, width_at(panel), len};
      i += len;
    }
  });
  if (!whole) return false;
  const S* from = src + begin * g.gather.c;
  for (int64_t k = 0; k < depth; ++k, from += g.gather.c)
    for (int i = 0; i < count; ++i) {
      const Piece& p = pieces[i];
      copy_run(dst + p.to + k * p.step, from + p.from, p.n, stride);
    }
  const int64_t last = (n - 1) / NR * NR, width = width_at(last);
  zero_columns(dst + last * depth + n - last, width, depth, last + width - n);
  return true;
}

// kDown, in place: table[segment*ld + i] = the channels of pixel i at the block's taps.
template <class S>
void point_at_pixels(const Im2colGemm& g, const S* src, const S* zeros, int64_t pixel, int64_t n,
                     const Im2colDepthBlock& block, const S** table, int64_t ld) {
  const int64_t first = block.begin / g.channels;
  const int64_t channel = block.begin % g.channels * g.gather.c;
  const int64_t step = g.axis[2].step * g.gather.s[2];
  for (int64_t s = 0; s < block.segments; ++s, table += ld) {
    const Tap tap = tap_at(g, g.other.s, first + s);
    for_each_run(g, pixel, pixel + n, [&](const PixelRun& run, int64_t at) {
      const Window win = window_of(g, tap, run);
      const S* p = src + win.offset + channel;
      const S** out = table + at;
      for (int64_t i = 0; i < win.low; ++i) out[i] = zeros;
      for (int64_t i = win.low; i < win.high; ++i, p += step) out[i] = p;
      for (int64_t i = win.high; i < run.len; ++i) out[i] = zeros;
    });
  }
}

// kDown, packed: dst[i*ld + depth], whole taps or part of one.
template <class T, class S>
void pack_pixel_rows(const Im2colGemm& g, const S* src, int64_t pixel, int64_t n,
                     const Im2colDepthBlock& block, T* dst, int64_t ld) {
  const Im2colAxis& w = g.axis[2];
  const int64_t first = block.begin / g.channels, channel = block.begin % g.channels;
  // The taps along the last axis and their channels form one run of memory: a 7x7 filter over 3
  // channels copies 7 runs of 21 instead of 49 of 3.
  const bool merge = channel == 0 && block.length == g.channels && w.offset_step == 1 &&
                     g.gather.c == 1 && g.gather.s[2] == g.channels && w.source > 1;
  for (int64_t s = 0; s < block.segments;) {
    const int64_t taps = merge ? im2col_min(w.taps - (first + s) % w.taps, block.segments - s) : 1;
    const Tap tap = tap_at(g, g.other.s, first + s);
    T* out = dst + s * block.length;
    for_each_run(g, pixel, pixel + n, [&](const PixelRun& run, int64_t at) {
      const int64_t id = run.at[0] * g.axis[0].step + tap.offset[0];
      const int64_t ih = run.at[1] * g.axis[1].step + tap.offset[1];
      const bool inside = id >= 0 && id < g.axis[0].source && ih >= 0 && ih < g.axis[1].source;
      const S* row =
          src + run.n * g.gather.n + id * g.gather.s[0] + ih * g.gather.s[1] + channel * g.gather.c;
      for (int64_t i = 0; i < run.len; ++i) {
        T* to = out + (at + i) * ld;
        const int64_t iw = (run.q + i) * w.step + tap.offset[2];
        const int64_t low = inside ? im2col_min(im2col_max(-iw, 0), taps) : taps;
        const int64_t high = inside ? im2col_max(im2col_min(w.source - iw, taps), low) : taps;
        for (int64_t k = 0; k < low * block.length; ++k) to[k] = T(0);
        copy_run(to + low * block.length, row + (iw + low) * g.gather.s[2],
                 low < high ? (high - low) * block.length : 0, g.gather.c);
        for (int64_t k = high * block.length; k < taps * block.length; ++k) to[k] = T(0);
      }
    });
    s += taps;
  }
}

// Element offsets along depth of the operand that is not gathered.
FC_INLINE void weight_offsets(const Im2colGemm& g, int64_t begin, int64_t end, int64_t* offset) {
  int64_t first, last;
  if (begin >= end) return;
  tap_range(g, begin, end, &first, &last);
  TapWalk walk(g, g.other.s, first);
  for (int64_t t = first; t < last; ++t, walk.next()) {
    const ChannelSpan span = channels_of(g, t, begin, end);
    if (span.count == 0) continue;
    const int64_t base = walk.tap().filter;
    for (int64_t i = 0; i < span.count; ++i)
      offset[span.at + i * span.step] = base + (span.first + i) * g.other.c;
  }
}

FC_INLINE void pixel_offsets(const Im2colGemm& g, const Im2colTensor& t, int64_t begin, int64_t end,
                             int64_t* offset) {
  for_each_run(g, begin, end, [&](const PixelRun& run, int64_t at) {
    int64_t o = run.n * t.n + (g.axis[2].origin + run.q * g.axis[2].spread) * t.s[2];
    for (int axis = 0; axis < 2; ++axis)
      o += (g.axis[axis].origin + run.at[axis] * g.axis[axis].spread) * t.s[axis];
    for (int64_t i = 0; i < run.len; ++i, o += g.axis[2].spread * t.s[2]) offset[at + i] = o;
  });
}

// Length of the run of consecutive offsets from k on.
FC_INLINE int64_t run_length(const int64_t* offset, int64_t k, int64_t depth) {
  int64_t e = k + 1;
  while (e < depth && offset[e] == offset[e - 1] + 1) ++e;
  return e - k;
}

// dst[i*ld + k] = src[i*row_step + offset[k]].
template <class T, class S>
void pack_rows(const S* src, int64_t row_step, int64_t rows, const int64_t* offset, int64_t depth,
               T* dst, int64_t ld) {
  if (row_step == 1) {
    transpose(dst, ld, src, depth, rows, [&](int64_t k) { return offset[k]; });
    return;
  }
  // Runs (the taps of a channel) move for many rows at once: neighbouring rows are neighbours in
  // memory (dgrad), and the lines being written, one per row, stay in L1.
  constexpr int64_t kRows = 64;
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t count = im2col_min(kRows, rows - i);
    for (int64_t k = 0; k < depth;) {
      const int64_t len = run_length(offset, k, depth);
      copy_columns(dst + i * ld + k, ld, src + i * row_step + offset[k], row_step, count, len, 1);
      k += len;
    }
  }
}

// kDown: panel[k*width + j] = src[j*column_step + offset[k]], j < n, zeros up to width.
template <class T, class S>
void pack_weight_panel(const S* src, int64_t column_step, int64_t n, int64_t width,
                       const int64_t* offset, int64_t depth, T* dst) {
  if (n < width) zero_columns(dst + n, width, depth, width - n);
  if (column_step == 1) {
    for (int64_t k = 0; k < depth; ++k) copy_run(dst + k * width, src + offset[k], n, 1);
    return;
  }
  for (int64_t k = 0; k < depth;) {
    const int64_t e = k + run_length(offset, k, depth);
    if (e - k >= 8) {
      transpose(dst + k * width, width, src + offset[k], n, e - k,
                [&](int64_t j) { return j * column_step; });
    } else {
      for (int64_t i = k; i < e; ++i)
        for (int64_t j = 0; j < n; ++j)
          dst[i * width + j] = to_acc(src[j * column_step + offset[i]]);
    }
    k = e;
  }
}

// kWgrad: panel [end - begin][width], columns (channel, tap) [column, column + n), rows pixels.
template <class T, class S>
void pack_patch_panel(const Im2colGemm& g, const S* src, int64_t column, int64_t n, int64_t width,
                      int64_t begin, int64_t end, T* dst, T* temp) {
  const int64_t depth = end - begin, step = g.axis[2].step * g.gather.s[2];
  if (n < width) zero_columns(dst + n, width, depth, width - n);
  if (g.gather.c == 1 && !g.tap_inner) {
    for (int64_t j = 0; j < n;) {
      const int64_t channel = (column + j) % g.channels;
      const int64_t len = im2col_min(g.channels - channel, n - j);
      const Tap tap = tap_at(g, g.dest.s, (column + j) / g.channels);
      for_each_run(g, begin, end, [&](const PixelRun& run, int64_t at) {
        const Window win = window_of(g, tap, run);
        T* out = dst + at * width + j;
        if (win.low > 0) zero_columns(out, width, win.low, len);
        if (win.low < win.high)
          copy_columns(out + win.low * width, width, src + win.offset + channel, step,
                       win.high - win.low, len, 1);
        if (win.high < run.len)
          zero_columns(out + win.high * width, width, run.len - win.high, len);
      });
      j += len;
    }
    return;
  }
  for (int64_t j = 0; j < n; ++j) {  // temp [n][depth], then transposed
    const int64_t index = column + j;
    const int64_t channel = g.tap_inner ? index / g.taps : index % g.channels;
    const Tap tap = tap_at(g, g.dest.s, g.tap_inner ? index % g.taps : index / g.channels);
    T* row = temp + j * depth;
    for_each_run(g, begin, end, [&](const PixelRun& run, int64_t at) {
      const Window win = window_of(g, tap, run);
      for (int64_t i = 0; i < win.low; ++i) row[at + i] = T(0);
      copy_columns(row + at + win.low, 0, src + win.offset + channel * g.gather.c, 0, 1,
                   win.high - win.low, step);
      for (int64_t i = win.high; i < run.len; ++i) row[at + i] = T(0);
    });
  }
  transpose(dst, width, static_cast<const T*>(temp), n, depth,
            [&](int64_t j) { return j * depth; });
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
