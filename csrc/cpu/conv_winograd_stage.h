// Strips of a strided tensor to and from a small buffer [row][column][channel lane], whatever the
// strides, the borders and the dtype: the transforms then see one form. Channels-last storage is
// moved by vectors, NCHW by square transposes, anything else element by element.
#pragma once
#include "conv_winograd_vector.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class T>
struct Plane {  // one image at the first channel of a vector
  T* data;
  int64_t channel, row, column;  // strides
  int64_t height, width;
  int channels;  // valid lanes
};

template <class T>
FC_INLINE void gather_pixel(const T* p, int64_t channel, int channels, acc_t<T>* to) {
  for (int l = 0; l < Lanes<T>::value; ++l)
    to[l] = l < channels ? to_acc(p[l * channel]) : acc_t<T>(0);
}

// `count` pixels of one row that exist.
template <class T>
FC_INLINE void load_pixels(const Plane<T>& plane, const T* p, int64_t count, acc_t<T>* to) {
  constexpr int L = Lanes<T>::value;
  if (plane.channel == 1 && plane.channels == L) {
    for (int64_t i = 0; i < count; ++i) vstore(to + i * L, vload_acc(p + i * plane.column));
    return;
  }
  if (plane.column == 1 && count >= L) {
    for (int64_t i = 0; i < count; i += L) {
      if (i > count - L) i = count - L;  // the last block overlaps the one before
      acc_vec<T> v[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        v[l] = l < plane.channels ? vload_acc(p + l * plane.channel + i) : acc_vec<T>{};
      transpose(v);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) vstore(to + (i + l) * L, v[l]);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    gather_pixel(p + i * plane.column, plane.channel, plane.channels, to + i * L);
}

// to[rows][columns][L] = plane[y0 + i][x0 + j], zero outside.
template <class T>
void load_strip(const Plane<T>& plane, int64_t y0, int64_t x0, int64_t rows, int64_t columns,
                acc_t<T>* to) {
  constexpr int L = Lanes<T>::value;
  const acc_vec<T> zero{};
  int64_t left = x0 < 0 ? -x0 : 0;
  if (left > columns) left = columns;
  int64_t end = plane.width - x0;
  if (end > columns) end = columns;
  if (end < left) end = left;
  for (int64_t i = 0; i < rows; ++i, to += columns * L) {
    const int64_t y = y0 + i;
    const bool inside = y >= 0 && y < plane.height && end > left;
    const int64_t from = inside ? left : columns, until = inside ? end : columns;
    for (int64_t j = 0; j < from; ++j) vstore(to + j * L, zero);
    if (inside)
      load_pixels(plane, plane.data + y * plane.row + (x0 + left) * plane.column, end - left,
                  to + left * L);
    for (int64_t j = until; j < columns; ++j) vstore(to + j * L, zero);
  }
}

template <class T>
FC_INLINE void store_pixels(const Plane<T>& plane, T* p, int64_t count, const acc_t<T>* from) {
  constexpr int L = Lanes<T>::value;
  if (plane.channel == 1 && plane.channels == L) {
    for (int64_t i = 0; i < count; ++i) vstore_acc(p + i * plane.column, vload(from + i * L));
    return;
  }
  if (plane.column == 1 && count >= L) {
    for (int64_t i = 0; i < count; i += L) {
      if (i > count - L) i = count - L;
      acc_vec<T> v[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) v[l] = vload(from + (i + l) * L);
      transpose(v);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (l < plane.channels) vstore_acc(p + l * plane.channel + i, v[l]);
    }
    return;
  }
  for (int l = 0; l < plane.channels; ++l)
    for (int64_t i = 0; i < count; ++i)
      from_acc(from[i * L + l], p + l * plane.channel + i * plane.column);
}

// plane[y0 + i][x0 + j] = from[i][j] where it exists; `columns` is the buffer's row.
template <class T>
void store_strip(const Plane<T>& plane, int64_t y0, int64_t x0, int64_t rows, int64_t columns,
                 const acc_t<T>* from) {
  const int64_t bottom = plane.height - y0 < rows ? plane.height - y0 : rows;
  const int64_t right = plane.width - x0 < columns ? plane.width - x0 : columns;
  for (int64_t i = 0; i < bottom; ++i)
    store_pixels(plane, plane.data + (y0 + i) * plane.row + x0 * plane.column, right,
                 from + i * columns * Lanes<T>::value);
}

// The position of a strip: its image, first tile row and column, tiles, and the number of its first
// tile among all.
struct Strip {
  int64_t n, y, x, tiles, first_tile;
};
template <class Plan>
FC_INLINE Strip strip_at(const Plan& p, int64_t s) {
  const int64_t row = s / p.strips_x, x = s % p.strips_x * p.strip_tiles;
  const int64_t left = p.tiles_x - x;
  return {row / p.tiles_y, row % p.tiles_y, x, left < p.strip_tiles ? left : p.strip_tiles,
          row * p.tiles_x + x};
}

template <class T, class View>
FC_INLINE Plane<T> plane_at(const View& view, int64_t n, int64_t c, int64_t channels,
                            int64_t height, int64_t width) {
  constexpr int L = Lanes<T>::value;
  const int64_t left = channels - c;
  return {static_cast<T*>(view.data) + n * view.n + c * view.c,
          view.c,
          view.h,
          view.w,
          height,
          width,
          static_cast<int>(left < L ? left : L)};
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
