// Tiles of a Winograd convolution on the GPU: which pixels a tile reads, and the two-dimensional
// transforms as the generated one-dimensional code (csrc/common/winograd_transforms.h) on columns,
// then on rows. One thread holds a whole tile in registers: 16 values for F(2x2,3x3), 36 for
// F(4x4,3x3), all indices known when compiled.
#pragma once
#include <type_traits>

#include "../../../csrc/common/winograd_transforms.h"
#include "epilogue.cuh"
#include "fast_divmod.cuh"
#include "scalar.cuh"

namespace fastconv::cuda {

// blockIdx.x, read anew: what follows from it is worked out a second time behind a main loop that
// has no registers to keep it in.
__device__ __forceinline__ uint32_t block_index_again() {
#if defined(FC_EMULATE)
  return blockIdx.x;
#else
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
#endif
}

// Names for the generated functions, with their extents.
#define FC_WINOGRAD_TRANSFORM(Name, function, inputs, outputs)                              \
  template <class Wino>                                                                     \
  struct Name {                                                                             \
    static constexpr int kIn = inputs, kOut = outputs;                                      \
    static __device__ __forceinline__ void apply(const float (&x)[kIn], float (&y)[kOut]) { \
      Wino::template function<float>(x, y);                                                 \
    }                                                                                       \
  };
FC_WINOGRAD_TRANSFORM(WinogradInput, input, Wino::kTile, Wino::kTile)
FC_WINOGRAD_TRANSFORM(WinogradFilter, filter, Wino::kTaps, Wino::kTile)
FC_WINOGRAD_TRANSFORM(WinogradOutput, output, Wino::kTile, Wino::kOut)
FC_WINOGRAD_TRANSFORM(WinogradWgradFilter, wgrad_filter, Wino::kOut, Wino::kTile)
FC_WINOGRAD_TRANSFORM(WinogradWgradOutput, wgrad_output, Wino::kTile, Wino::kTaps)
#undef FC_WINOGRAD_TRANSFORM

// store(i, j, (M X M^T)[i][j]) for X[i][j] = load(i, j).
template <class Transform, class Load, class Store>
__device__ __forceinline__ void winograd_nest(const Load& load, const Store& store) {
  constexpr int in = Transform::kIn, out = Transform::kOut;
  float half[out][in];
#pragma unroll
  for (int j = 0; j < in; ++j) {
    float x[in], y[out];
#pragma unroll
    for (int i = 0; i < in; ++i) x[i] = load(i, j);
    Transform::apply(x, y);
#pragma unroll
    for (int i = 0; i < out; ++i) half[i][j] = y[i];
  }
#pragma unroll
  for (int i = 0; i < out; ++i) {
    float y[out];
    Transform::apply(half[i], y);
#pragma unroll
    for (int j = 0; j < out; ++j) store(i, j, y[j]);
  }
}

// A tensor of images. Strides in bytes, so that no address needs scaling. Channels and images may
// lie more than 2^31 bytes apart, the pixels of one tile may not.
struct WinogradImages {
  int64_t stride_n, stride_c;
  int32_t stride_h, stride_w;
  int32_t height, width;
};

template <class T>
__device__ __forceinline__ T* byte_offset(T* p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}

// How the output pixels (wgrad: the pixels of dy) are cut into tiles.
struct WinogradTiling {
  uint32_t tiles;                       // of all images, fewer than 2^31 - 64
  FastDivmod tiles_x, tiles_per_image;  // per row; rows times that
};

struct WinogradTile {
  int32_t n, y, x;  // image; row and column of tiles
};

__device__ __forceinline__ WinogradTile winograd_tile(const WinogradTiling& t, uint32_t tile) {
  uint32_t in_image, x;
  const uint32_t n = t.tiles_per_image.divmod(tile, in_image);
  const uint32_t y = t.tiles_x.divmod(in_image, x);
  return {static_cast<int32_t>(n), static_cast<int32_t>(y), static_cast<int32_t>(x)};
}

// The kExtent x kExtent pixels that begin at row y0, column x0 of an image, and which of them
// exist: column j if bit j is set, row i if bit 8 + i is.
template <class scalar_t>
struct WinogradWindow {
  const scalar_t* corner;
  uint32_t exists;  // zero: none
};

template <int kExtent, class scalar_t>
__device__ __forceinline__ WinogradWindow<scalar_t> winograd_window(const WinogradImages& images,
                                                                    const scalar_t* image,
                                                                    int32_t y0, int32_t x0) {
  uint32_t exists = 0;
#pragma unroll
  for (int i = 0; i < kExtent; ++i) {
    exists |= static_cast<uint32_t>(x0 + i >= 0 && x0 + i < images.width) << i;
    exists |= static_cast<uint32_t>(y0 + i >= 0 && y0 + i < images.height) << (8 + i);
  }
  // Outside the tensor where the window begins in the padding; only pixels that exist are read.
  return {byte_offset(image, y0 * static_cast<int64_t>(images.stride_h) +
                                 x0 * static_cast<int64_t>(images.stride_w)),
          exists};
}

// A pixel on its way from memory, not yet widened: a conversion would wait for it.
__device__ __forceinline__ float raw_pixel(float v) { return v; }
__device__ __forceinline__ uint32_t raw_pixel(__half v) { return __half_as_ushort(v); }
__device__ __forceinline__ uint32_t raw_pixel(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }
template <class scalar_t>
using raw_pixel_t = decltype(raw_pixel(scalar_t()));

template <class scalar_t>
__device__ __forceinline__ float widen(raw_pixel_t<scalar_t> v) {
  if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>)
    return __uint_as_float(v << 16);
  else if constexpr (std::is_same_v<scalar_t, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(v)));
  else
    return v;
}

// x[i * kExtent + j] = pixel (i, j), zero where none is. kUnitStride: neighbouring pixels of a row
// lie side by side (NCHW), so that their addresses are one register and constants.
template <int kExtent, bool kUnitStride, class scalar_t>
__device__ __forceinline__ void load_window(const WinogradImages& images, const scalar_t* corner,
                                            uint32_t exists, raw_pixel_t<scalar_t>* x) {
#pragma unroll
  for (int i = 0; i < kExtent; ++i) {
    const uint32_t columns = exists >> (8 + i) & 1 ? exists : 0;
    const scalar_t* row = byte_offset(corner, i * images.stride_h);
#pragma unroll
    for (int j = 0; j < kExtent; ++j) {
      const scalar_t* at = kUnitStride ? row + j : byte_offset(row, j * images.stride_w);
      x[i * kExtent + j] = columns >> j & 1 ? raw_pixel(*at) : 0;
    }
  }
}

// The epilogue of one row of an output tile; `row`: the residual of its first pixel.
template <int kExtent, class scalar_t>
__device__ __forceinline__ void apply_to_row(const StoreEpilogue<float>& epilogue,
                                             const WinogradImages& images, bool unit_stride,
                                             const scalar_t* row, int32_t columns,
                                             float (&values)[kExtent]) {
  apply_epilogue(epilogue, values, [&](float(&r)[kExtent]) {
    if (unit_stride && columns >= kExtent &&
        reinterpret_cast<uintptr_t>(row) % (kExtent * sizeof(scalar_t)) == 0) {
      load_aligned(row, r);
    } else {
#pragma unroll
      for (int j = 0; j < kExtent; ++j)
        if (j < columns) r[j] = to_acc(*byte_offset(row, j * images.stride_w));
    }
  });
}

// row[j] = values[j] for the first `columns`. With unit_stride a whole row that is aligned goes out
// in one store.
template <int kExtent, class scalar_t>
__device__ __forceinline__ void store_row(const WinogradImages& images, bool unit_stride,
                                          scalar_t* row, int32_t columns,
                                          const float (&values)[kExtent]) {
  if (unit_stride && columns >= kExtent &&
      reinterpret_cast<uintptr_t>(row) % (kExtent * sizeof(scalar_t)) == 0) {
    store_aligned(row, values);
  } else {
#pragma unroll
    for (int j = 0; j < kExtent; ++j)
      if (j < columns) *byte_offset(row, j * images.stride_w) = from_acc<scalar_t>(values[j]);
  }
}

// y[i][j] = values[i][j] for the rows and columns that exist: the first `rows` and `columns`.
template <int kExtent, class scalar_t>
__device__ __forceinline__ void store_tile(const WinogradImages& images, bool unit_stride,
                                           scalar_t* y, int32_t rows, int32_t columns,
                                           const float (&values)[kExtent][kExtent]) {
#pragma unroll
  for (int i = 0; i < kExtent; ++i) {
    if (i >= rows) break;
    store_row(images, unit_stride, byte_offset(y, i * images.stride_h), columns, values[i]);
  }
}

}  // namespace fastconv::cuda
