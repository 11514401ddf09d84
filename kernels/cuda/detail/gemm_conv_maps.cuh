// The two halves of an address in a convolution's implicit column matrix, as maps for
// gemm_loader.cuh. Every index is taken apart by FastDivmod, for any geometry.
//
//   pixel: GEMM index -> (image, three coordinates)    coordinate = origin + step * position
//   tap and channel: GEMM index -> (channel, three displacements)   displacement = step * tap
//
// Their sum is the coordinate that is read, and the sum of their offsets its address. Indices are
// relative to the image of the tile's first pixel, so that 32 bits hold what a tile spans; the
// 64-bit base pointer carries the rest.
#pragma once
#include "fast_divmod.cuh"
#include "gemm_loader.cuh"

namespace fastconv::cuda {

// How a tensor's element is addressed from its coordinates within one image:
// offset = ((d * plane_rows + h) * row_pixels + w) * pixel_stride.
struct Raster {
  int plane_rows, row_pixels, pixel_stride;

  __device__ __forceinline__ int offset(int d, int h, int w) const {
    return ((d * plane_rows + h) * row_pixels + w) * pixel_stride;
  }
};

// Pixels in the order (image, o, p, q), from `first` of an image on.
struct PixelMap {
  static constexpr bool CHEAP = false;
  FastDivmod image, plane, row;  // by pixels per image, per plane, per row
  int first;                     // of the tile, within its first image
  int count;                     // from `first` on; none behind
  int origin[3], step[3];
  Raster raster;
  int image_stride;  // elements

  __device__ __forceinline__ Coordinate at(int i) const {
    if (i >= count) return {0, Coordinate::NOTHING, 0, 0};
    uint32_t pixel, in_plane, q;
    const int n = static_cast<int>(image.divmod(first + i, pixel));
    const int o = static_cast<int>(plane.divmod(pixel, in_plane));
    const int p = static_cast<int>(row.divmod(in_plane, q));
    const int d = origin[0] + step[0] * o, h = origin[1] + step[1] * p;
    const int w = origin[2] + step[2] * static_cast<int>(q);
    return {n * image_stride + raster.offset(d, h, w), d, h, w};
  }
};

// Pixels with a mask of the taps that stay inside the box: what the analytic form tests three times
// per element is one bit, looked up by the tap's number. At most kMaskTaps taps.
struct MaskedPixelMap : PixelMap {
  int taps[3], tap_step[3];
  Box box;

  __device__ __forceinline__ Coordinate at(int i) const {
    const Coordinate c = PixelMap::at(i);
    if (c.d == Coordinate::NOTHING) return {0, 0, 0, 0};
    const uint64_t in_row = inside(c.w, 2);
    const uint64_t in_plane = inside(c.h, 1);
    uint64_t mask = 0;
    int shift = 0, d = c.d;
    for (int t = 0; t < taps[0]; ++t, d += tap_step[0])
      for (int r = 0; r < taps[1]; ++r, shift += taps[2])
        if (static_cast<unsigned>(d) < static_cast<unsigned>(box.extent[0]) && (in_plane >> r & 1))
          mask |= in_row << shift;
    return {c.offset, static_cast<int>(mask), static_cast<int>(mask >> 32), 0};
  }

 private:
  __device__ __forceinline__ uint64_t inside(int coordinate, int axis) const {
    uint64_t bits = 0;
    for (int tap = 0; tap < taps[axis]; ++tap, coordinate += tap_step[axis])
      if (static_cast<unsigned>(coordinate) < static_cast<unsigned>(box.extent[axis]))
        bits |= uint64_t{1} << tap;
    return bits;
  }
};

// PixelMap along gemm_k: whole images that were passed go into the 64-bit base.
template <int BLOCK_K>
struct PixelKMap : PixelMap {
  __device__ __forceinline__ int64_t advance() {
    count -= BLOCK_K;
    uint32_t rest;
    const int images = static_cast<int>(image.divmod(first + BLOCK_K, rest));
    first = static_cast<int>(rest);
    return static_cast<int64_t>(images) * image_stride;
  }
};

// Pixels whose images are each dense: the offset within one is the pixel's index. (NCHW's dy.)
template <int BLOCK_K>
struct ImageKMap {
  FastDivmod image;
  int first, count;
  int image_stride;

  __device__ __forceinline__ Coordinate at(int k) const {
    if (k >= count) return {0, Coordinate::NOTHING, 0, 0};
    uint32_t pixel;
    const int n = static_cast<int>(image.divmod(first + k, pixel));
    return {n * image_stride + static_cast<int>(pixel), 0, 0, 0};
  }
  __device__ __forceinline__ int64_t advance() {
    count -= BLOCK_K;
    uint32_t rest;
    const int images = static_cast<int>(image.divmod(first + BLOCK_K, rest));
    first = static_cast<int>(rest);
    return static_cast<int64_t>(images) * image_stride;
  }
};

// (tap, channel), the channel innermost, or (channel, tap).
template <bool CHANNEL_INNERMOST>
struct TapChannelMap {
  static constexpr bool CHEAP = false;
  FastDivmod inner;               // by channels, or by taps
  FastDivmod tap_plane, tap_row;  // by taps per plane (R S), per row (S)
  int first, extent;              // the tile's first index; how many there are in all
  int step[3];
  Raster raster;
  int channel_stride;

  __device__ __forceinline__ Coordinate at(int i) const {
    if (first + i >= extent) return {0, Coordinate::NOTHING, 0, 0};
    uint32_t remainder;
    const uint32_t quotient = inner.divmod(first + i, remainder);
    Coordinate c = tap(CHANNEL_INNERMOST ? quotient : remainder);
    c.offset += static_cast<int>(CHANNEL_INNERMOST ? remainder : quotient) * channel_stride;
    return c;
  }
  // Of channel 0.
  __device__ __forceinline__ Coordinate tap(uint32_t number) const {
    uint32_t in_plane, s;
    const int t = static_cast<int>(tap_plane.divmod(number, in_plane));
    const int r = static_cast<int>(tap_row.divmod(in_plane, s));
    const int d = step[0] * t, h = step[1] * r, w = step[2] * static_cast<int>(s);
    return {raster.offset(d, h, w), d, h, w};
  }
};

template <bool CHANNEL_INNERMOST, int BLOCK_K>
struct TapChannelKMap : TapChannelMap<CHANNEL_INNERMOST> {
  __device__ __forceinline__ int64_t advance() {
    this->first += BLOCK_K;
    return 0;
  }
};

// The twin for few taps: where a tap is read comes from a table in shared memory, made once per
// block. TAP_NUMBER: d is the tap, for pixels with a mask; else 0, or NOTHING where there is none.
template <bool CHANNEL_INNERMOST, bool TAP_NUMBER, int BLOCK_K>
struct TapTableKMap {
  FastDivmod inner;  // by channels, or by taps
  int first, extent;
  int channel_stride;
  const int* table;  // [kMaskTaps + 1]: offset of each tap

  __device__ __forceinline__ Coordinate at(int i) const {
    uint32_t remainder;
    const uint32_t quotient = inner.divmod(first + i, remainder);
    const int channel = static_cast<int>(CHANNEL_INNERMOST ? remainder : quotient);
    const bool exists = first + i < extent;
    const int tap = exists ? static_cast<int>(CHANNEL_INNERMOST ? quotient : remainder) : kMaskTaps;
    return {channel * channel_stride + table[tap],
            TAP_NUMBER ? tap
            : exists   ? 0
                       : Coordinate::NOTHING,
            0, 0};
  }
  __device__ __forceinline__ int64_t advance() {
    first += BLOCK_K;
    return 0;
  }
};

}  // namespace fastconv::cuda
