// Staging: the input elements that a tile of outputs reads, converted to acc_t, zero-padded and
// laid out as conv_direct.h says. Every stride and dtype of the caller ends here.
#pragma once
#include "conv_direct.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {

struct Tile {
  int64_t start[3], extent[3];  // outputs along D, H, W
  int64_t positions() const { return extent[0] * extent[1] * extent[2]; }
};

FC_INLINE Tile tile_at(const DirectPlan& g, int64_t index) {
  Tile t;
  for (int i = 2; i >= 0; --i) {
    const DirectAxis& a = g.axis[i];
    t.start[i] = index % a.tiles * a.tile;
    index /= a.tiles;
    t.extent[i] = a.tile < a.out - t.start[i] ? a.tile : a.out - t.start[i];
  }
  return t;
}
FC_INLINE int64_t tile_count(const DirectPlan& g) {
  return g.axis[0].tiles * g.axis[1].tiles * g.axis[2].tiles;
}

template <class A>
FC_INLINE void fill_zero(A* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = 0;
}

// The part [lo, hi) of a run whose input coordinates first + i*step lie inside the input.
FC_INLINE void inside(int64_t first, int64_t step, int64_t in, int64_t run, int64_t* lo,
                      int64_t* hi) {
  int64_t l = first < 0 ? (-first + step - 1) / step : 0;
  int64_t h = first >= in ? 0 : (in - 1 - first) / step + 1;
  if (l > run) l = run;
  if (h > run) h = run;
  *lo = l;
  *hi = h < l ? l : h;
}

// One stretch of a row that lies inside the input; the same for every channel.
struct StageCopy {
  int64_t src;  // element offset from the channel's spatial origin
  int32_t dst;
  int32_t n;
};

// Lists a tile's copies and zeroes the stage where copies do not reach it. The zeros outlive the
// tile's channels: small planes cost their copies and nothing else.
template <class A>
int64_t stage_begin(const DirectPlan& g, const Tile& t, StageCopy* list, A* staged) {
  const DirectAxis &ad = g.axis[0], &ah = g.axis[1], &aw = g.axis[2];
  int64_t count = 0, copied = 0;
  for (int64_t ud = 0; ud < ad.runs; ++ud)
    for (int64_t id = 0; id < ad.run; ++id) {
      const int64_t d = (t.start[0] + id) * ad.step + ad.run_offset[ud];
      if (d < 0 || d >= ad.in) continue;
      for (int64_t uh = 0; uh < ah.runs; ++uh)
        for (int64_t ih = 0; ih < ah.run; ++ih) {
          const int64_t h = (t.start[1] + ih) * ah.step + ah.run_offset[uh];
          if (h < 0 || h >= ah.in) continue;
          for (int64_t uw = 0; uw < aw.runs; ++uw) {
            const int64_t first = t.start[2] * aw.step + aw.run_offset[uw];
            int64_t lo, hi;
            inside(first, aw.step, aw.in, aw.run, &lo, &hi);
            if (hi == lo) continue;
            StageCopy& c = list[count++];
            c.src =
                d * g.in.stride[2] + h * g.in.stride[3] + (first + lo * aw.step) * g.in.stride[4];
            c.dst = static_cast<int32_t>((ud * ad.run + id) * g.stage_axis[0] +
                                         (uh * ah.run + ih) * g.stage_axis[1] +
                                         (uw * aw.run + lo) * g.stage_axis[2]);
            c.n = static_cast<int32_t>(hi - lo);
            copied += hi - lo;
          }
        }
    }
  if (copied < ad.runs * ad.run * ah.runs * ah.run * aw.runs * aw.run)
    std::memset(staged, 0, sizeof(A) * static_cast<size_t>(g.stage_elements));
  return count;
}

// src: the first of `channels` channels of one sample, at its spatial origin.
template <class T>
void stage(const DirectPlan& g, const StageCopy* list, int64_t count, const T* src,
           int64_t channels, acc_t<T>* staged) {
  const int64_t step = g.axis[2].step * g.in.stride[4];
  if (g.pixel_stage) {
    for (int64_t i = 0; i < count; ++i) {
      const T* from = src + list[i].src;
      acc_t<T>* to = staged + list[i].dst;
      for (int64_t n = list[i].n; n > 0; --n, from += step, to += g.stage_axis[2])
        load_run(from, g.in.stride[1], to, channels);
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c, src += g.in.stride[1], staged += g.stage_c) {
    if (step == 1)
      for (int64_t i = 0; i < count; ++i)
        load_run(src + list[i].src, 1, staged + list[i].dst, list[i].n);
    else
      for (int64_t i = 0; i < count; ++i)
        load_run(src + list[i].src, step, staged + list[i].dst, list[i].n);
  }
}

// Stage offset of the tile-local output (o, p, q) under tap 0 of an axis whose slot is 0.
FC_INLINE int32_t stage_row(const DirectPlan& g, int64_t o, int64_t p, int64_t q) {
  return static_cast<int32_t>(o * g.stage_axis[0] + p * g.stage_axis[1] + q * g.stage_axis[2]);
}

// Element offset of the tile's output (o, p, q) in `out`, without n and channel.
FC_INLINE int64_t out_offset(const DirectPlan& g, const Tile& t, int64_t o, int64_t p, int64_t q) {
  const int64_t at[3] = {o, p, q};
  int64_t offset = 0;
  for (int i = 0; i < 3; ++i)
    offset +=
        (g.axis[i].out_begin + (t.start[i] + at[i]) * g.axis[i].out_step) * g.out.stride[2 + i];
  return offset;
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
