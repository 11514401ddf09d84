// Two-dimensional transforms of tiles: the generated one-dimensional code on columns, then on rows;
// and the walk over the strips of a tensor that leaves transformed tiles in blocks of channels.
#pragma once
#include "../common/winograd_transforms.h"
#include "conv_winograd.h"
#include "conv_winograd_stage.h"

namespace fastconv::cpu::FC_ISA {
namespace {

// Names for the generated functions, with their extents.
#define FC_WINOGRAD_TRANSFORM(Name, function, inputs, outputs)     \
  template <class Wino>                                            \
  struct Name {                                                    \
    static constexpr int kIn = inputs, kOut = outputs;             \
    template <class S, class V>                                    \
    static FC_INLINE void apply(const V (&x)[kIn], V (&y)[kOut]) { \
      Wino::template function<S>(x, y);                            \
    }                                                              \
  };
FC_WINOGRAD_TRANSFORM(InputOf, input, Wino::kTile, Wino::kTile)
FC_WINOGRAD_TRANSFORM(FilterOf, filter, Wino::kTaps, Wino::kTile)
FC_WINOGRAD_TRANSFORM(OutputOf, output, Wino::kTile, Wino::kOut)
FC_WINOGRAD_TRANSFORM(WgradFilterOf, wgrad_filter, Wino::kOut, Wino::kTile)
FC_WINOGRAD_TRANSFORM(WgradOutputOf, wgrad_output, Wino::kTile, Wino::kTaps)
#undef FC_WINOGRAD_TRANSFORM

// store(i, j, (M X M^T)[i][j]) for X[i][j] = load(i, j).
template <class Transform, class A, class Load, class Store>
FC_INLINE void nest(const Load& load, const Store& store) {
  constexpr int in = Transform::kIn, out = Transform::kOut;
  using vec = typename Simd<A>::vec;
  vec half[out][in], x[in], y[out];
  for (int j = 0; j < in; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < in; ++i) x[i] = load(i, j);
    Transform::template apply<A>(x, y);
#pragma GCC unroll 8
    for (int i = 0; i < out; ++i) half[i][j] = y[i];
  }
  for (int i = 0; i < out; ++i) {
    Transform::template apply<A>(half[i], y);
#pragma GCC unroll 8
    for (int j = 0; j < out; ++j) store(i, j, y[j]);
  }
}

template <class T>
struct StripSource {
  WinogradView view;
  int64_t channels, height, width, pad_h, pad_w;
};

// [channel block][n2][tile of chunk][row], channels_per_block of each row used.
template <class A>
struct ChannelBlocks {
  A* data;
  int64_t channels, row, step;
};

// Tasks: channel blocks x strips of the chunk. Tiles begin kStep pixels apart.
template <class Transform, int kStep, class T>
FC_INLINE void transform_strips(const WinogradPlan& p, const WinogradChunk& chunk,
                                const StripSource<T>& source, const ChannelBlocks<acc_t<T>>& blocks,
                                int64_t begin, int64_t end, acc_t<T>* stage) {
  using A = acc_t<T>;
  using vec = typename Simd<A>::vec;
  constexpr int L = Lanes<T>::value, in = Transform::kIn, out = Transform::kOut;
  const int64_t strips = chunk.strip_end - chunk.strip_begin;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / strips, c_begin = b * blocks.channels;
    const int64_t left = source.channels - c_begin;
    const int64_t c_end = c_begin + (left < blocks.channels ? left : blocks.channels);
    const Strip s = strip_at(p, chunk.strip_begin + task % strips);
    const int64_t columns = s.tiles * kStep + in - kStep;
    A* to =
        blocks.data + b * out * out * blocks.step + (s.first_tile - chunk.tile_begin) * blocks.row;
    for (int64_t c = c_begin; c < c_end; c += L) {
      load_strip(plane_at<T>(source.view, s.n, c, source.channels, source.height, source.width),
                 s.y * kStep - source.pad_h, s.x * kStep - source.pad_w, in, columns, stage);
      for (int64_t t = 0; t < s.tiles; ++t) {
        const A* from = stage + t * kStep * L;
        A* tile = to + c - c_begin + t * blocks.row;
        nest<Transform, A>(
            [&](int i, int j) { return vload(from + (i * columns + j) * L); },
            [&](int i, int j, vec y) { vstore(tile + (i * out + j) * blocks.step, y); });
      }
    }
  }
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
