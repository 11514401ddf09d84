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

template <class T>
FC_INLINE void stage_w_planes(const DirectPlan& g, const T* src, acc_t<T>* dst, int64_t base) {
  const DirectAxis& w = g.axis[2];
  for (int64_t u = 0; u < w.runs; ++u) {
    const int64_t first = base + w.run_offset[u];
    int64_t lo, hi;
    inside(first, w.step, w.in, w.run, &lo, &hi);
    acc_t<T>* row = dst + u * w.run;
    fill_zero(row, lo);
    load_run(src + (first + lo * w.step) * g.in.stride[4], w.step * g.in.stride[4], row + lo,
             hi - lo);
    fill_zero(row + hi, w.run - hi);
  }
}

template <class T>
FC_INLINE void stage_w_pixels(const DirectPlan& g, const T* src, int64_t channels, acc_t<T>* dst,
                              int64_t base) {
  const DirectAxis& w = g.axis[2];
  for (int64_t u = 0; u < w.runs; ++u)
    for (int64_t i = 0; i < w.run; ++i) {
      const int64_t at = base + w.run_offset[u] + i * w.step;
      acc_t<T>* pixel = dst + (u * w.run + i) * g.stage_axis[2];
      if (at < 0 || at >= w.in)
        fill_zero(pixel, channels);
      else
        load_run(src + at * g.in.stride[4], g.in.stride[1], pixel, channels);
    }
}

// src: channel `channels` of them from, at spatial origin of sample n.
template <class T>
void stage(const DirectPlan& g, const Tile& t, const T* src, int64_t channels, acc_t<T>* dst) {
  const DirectAxis &ad = g.axis[0], &ah = g.axis[1], &aw = g.axis[2];
  const int64_t planes = g.pixel_stage ? 1 : channels;
  const int64_t row_elements =
      g.pixel_stage ? aw.runs * aw.run * g.stage_axis[2] : aw.runs * aw.run;
  for (int64_t c = 0; c < planes; ++c)
    for (int64_t ud = 0; ud < ad.runs; ++ud)
      for (int64_t id = 0; id < ad.run; ++id) {
        const int64_t d = t.start[0] * ad.step + ad.run_offset[ud] + id * ad.step;
        for (int64_t uh = 0; uh < ah.runs; ++uh)
          for (int64_t ih = 0; ih < ah.run; ++ih) {
            const int64_t h = t.start[1] * ah.step + ah.run_offset[uh] + ih * ah.step;
            acc_t<T>* row = dst + c * g.stage_c + (ud * ad.run + id) * g.stage_axis[0] +
                            (uh * ah.run + ih) * g.stage_axis[1];
            if (d < 0 || d >= ad.in || h < 0 || h >= ah.in) {
              fill_zero(row, row_elements);
              continue;
            }
            const T* from = src + c * g.in.stride[1] + d * g.in.stride[2] + h * g.in.stride[3];
            if (g.pixel_stage)
              stage_w_pixels(g, from, channels, row, t.start[2] * aw.step);
            else
              stage_w_planes(g, from, row, t.start[2] * aw.step);
          }
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
