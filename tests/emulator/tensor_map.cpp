#include "tensor_map.h"

#include <algorithm>
#include <cstring>

#include "kernel_interface.h"

namespace emu {

size_t TensorMap::bytes() const {
  size_t n = element_bytes;
  if (im2col) return n * channels * pixels;
  for (int i = 0; i < rank; ++i) n *= box[i];
  return n;
}

const unsigned char* TensorMap::end() const {
  const unsigned char* last = base;
  for (int i = 0; i < rank; ++i) last += (extent[i] - 1) * stride[i];
  return last + element_bytes;
}

namespace {

const char* encode_common(TensorMap* map, unsigned element_bytes, bool tf32, int rank,
                          const void* base, const uint64_t* extent, const uint64_t* stride,
                          Swizzle swizzle) {
  std::memset(static_cast<void*>(map), 0, sizeof *map);
  if (rank < 1 || rank > kTensorRank) return "tensorRank is not 1 to 5";
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0) return "globalAddress is not 16-byte aligned";
  for (int i = 0; i < rank; ++i) {
    if (extent[i] == 0 || extent[i] > uint64_t{1} << 32) return "globalDim is not 1 to 2^32";
    if (i > 0 && (stride[i] % 16 != 0 || stride[i] >= uint64_t{1} << 40))
      return "globalStrides is no multiple of 16 below 2^40";
    map->extent[i] = extent[i];
    map->stride[i] = i == 0 ? element_bytes : stride[i];
    map->box[i] = map->step[i] = 1;
  }
  map->element_bytes = element_bytes;
  map->tf32 = tf32;
  map->rank = rank;
  map->base = static_cast<const unsigned char*>(base);
  map->swizzle = swizzle;
  return nullptr;
}

const char* check_row(const TensorMap& map) {
  if (map.row_bytes() % 16 != 0) return "the inner box is no multiple of 16 bytes";
  if (map.swizzle != Swizzle::kNone && map.row_bytes() > swizzle_span(map.swizzle))
    return "the inner box is longer than the swizzle's span";
  // Allowed, but rows would then lie a span apart: no kernel has a use for it.
  if (map.swizzle != Swizzle::kNone && map.row_bytes() < swizzle_span(map.swizzle))
    return "not modelled: an inner box shorter than the swizzle's span";
  return nullptr;
}

}  // namespace

const char* encode_tile(TensorMap* map, unsigned element_bytes, bool tf32, int rank,
                        const void* base, const uint64_t* extent, const uint64_t* stride,
                        const uint32_t* box, Swizzle swizzle) {
  const char* why = encode_common(map, element_bytes, tf32, rank, base, extent, stride, swizzle);
  if (why != nullptr) return why;
  for (int i = 0; i < rank; ++i) {
    if (box[i] < 1 || box[i] > 256) return "boxDim is not 1 to 256";
    map->box[i] = box[i];
  }
  why = check_row(*map);
  if (why == nullptr) map->magic = TensorMap::kMagic;
  return why;
}

const char* encode_im2col(TensorMap* map, unsigned element_bytes, bool tf32, int rank,
                          const void* base, const uint64_t* extent, const uint64_t* stride,
                          const int* lower, const int* upper, uint32_t channels, uint32_t pixels,
                          const uint32_t* step, Swizzle swizzle) {
  if (rank < 3) return "im2col takes ranks 3 to 5";
  const char* why = encode_common(map, element_bytes, tf32, rank, base, extent, stride, swizzle);
  if (why != nullptr) return why;
  map->im2col = true;
  map->channels = channels;
  map->pixels = pixels;
  if (channels < 1 || channels > 256) return "channelsPerPixel is not 1 to 256";
  if (pixels < 1 || pixels > 1024) return "pixelsPerColumn is not 1 to 1024";
  const int limit = rank == 3 ? 1 << 15 : rank == 4 ? 1 << 7 : 1 << 4;
  for (int i = 0; i < rank - 2; ++i) {
    if (std::min(lower[i], upper[i]) < -limit || std::max(lower[i], upper[i]) >= limit)
      return "a corner of the pixel box is out of range";
    if (static_cast<int64_t>(extent[i + 1]) - 1 + upper[i] < lower[i])
      return "the pixel box is empty";
    if (step[i] < 1 || step[i] > 8) return "elementStrides is not 1 to 8";
    map->lower[i] = lower[i];
    map->upper[i] = upper[i];
    map->step[i + 1] = step[i];
  }
  why = check_row(*map);
  if (why == nullptr) map->magic = TensorMap::kMagic;
  return why;
}

const char* check_coordinates(const TensorMap& map, const int* at, const int* offset) {
  if (!map.im2col) return nullptr;  // anywhere: outside is zero
  const int limit = map.rank == 3 ? 1 << 16 : map.rank == 4 ? 1 << 8 : 1 << 5;
  for (int i = 0; i < map.spatial(); ++i) {
    if (offset[i] < 0 || offset[i] >= limit) return "an im2col offset is out of range";
    const int64_t last = static_cast<int64_t>(map.extent[i + 1]) - 1 + map.upper[i];
    if (at[i + 1] < map.lower[i] || at[i + 1] > last)
      return "the first pixel is outside of the pixel box";
    if ((at[i + 1] - map.lower[i]) % static_cast<int>(map.step[i + 1]) != 0)
      return "the first pixel is not on the walk's stride";
  }
  return nullptr;
}

namespace {

// `count` neighbours along axis 0, from coordinate `x` on.
void fetch_row(const TensorMap& map, const int64_t* x, unsigned count, unsigned char* to) {
  const unsigned char* from = map.base;
  for (int i = 1; i < map.rank; ++i) {
    if (x[i] < 0 || static_cast<uint64_t>(x[i]) >= map.extent[i]) return;
    from += static_cast<uint64_t>(x[i]) * map.stride[i];
  }
  const int64_t first = std::max<int64_t>(x[0], 0);
  const int64_t last = std::min<int64_t>(x[0] + count, static_cast<int64_t>(map.extent[0]));
  if (first >= last) return;
  unsigned char* const out = to + (first - x[0]) * map.element_bytes;
  const auto bytes = static_cast<size_t>(last - first) * map.element_bytes;
  std::memcpy(out, from + first * map.element_bytes, bytes);
  if (!map.tf32) return;
  for (size_t i = 0; i < bytes; i += 4) {
    float value;
    std::memcpy(&value, out + i, 4);
    const uint32_t rounded = round_to_tf32(value);
    std::memcpy(out + i, &rounded, 4);
  }
}

// f(row of the box, coordinates of its first element).
template <class F>
void each_row(const TensorMap& map, const int* at, const F& f) {
  uint32_t i[kTensorRank] = {};
  int64_t x[kTensorRank] = {at[0]};
  for (size_t row = 0;; ++row) {
    for (int k = 1; k < map.rank; ++k) x[k] = static_cast<int64_t>(at[k]) + i[k];
    f(row, x);
    int k = 1;
    while (k < map.rank && ++i[k] == map.box[k]) i[k++] = 0;
    if (k >= map.rank) return;
  }
}

}  // namespace

void fetch_box(const TensorMap& map, const int* at, const int* offset, unsigned char* to) {
  std::memset(to, 0, map.bytes());
  if (!map.im2col) {
    each_row(map, at, [&](size_t row, const int64_t* x) {
      fetch_row(map, x, map.box[0], to + row * map.row_bytes());
    });
    return;
  }
  int64_t pixel[3] = {}, image = at[map.rank - 1];
  for (int i = 0; i < map.spatial(); ++i) pixel[i] = at[i + 1];
  for (uint32_t p = 0; p < map.pixels; ++p) {
    int64_t x[kTensorRank] = {at[0]};
    for (int i = 0; i < map.spatial(); ++i) x[i + 1] = pixel[i] + offset[i];
    x[map.rank - 1] = image;
    fetch_row(map, x, map.channels, to + p * map.row_bytes());
    int i = 0;
    for (; i < map.spatial(); ++i) {
      pixel[i] += map.step[i + 1];
      if (pixel[i] <= static_cast<int64_t>(map.extent[i + 1]) - 1 + map.upper[i]) break;
      pixel[i] = map.lower[i];
    }
    if (i == map.spatial()) ++image;
  }
}

void store_box(const TensorMap& map, const int* at, const unsigned char* from,
               void (*visit)(unsigned char* to, const unsigned char* from, size_t bytes)) {
  each_row(map, at, [&](size_t row, const int64_t* x) {
    unsigned char* to = const_cast<unsigned char*>(map.base);
    for (int k = 1; k < map.rank; ++k) {
      if (x[k] < 0 || static_cast<uint64_t>(x[k]) >= map.extent[k]) return;
      to += static_cast<uint64_t>(x[k]) * map.stride[k];
    }
    const int64_t first = std::max<int64_t>(x[0], 0);
    const int64_t last = std::min<int64_t>(x[0] + map.box[0], static_cast<int64_t>(map.extent[0]));
    if (first >= last) return;
    visit(to + first * map.element_bytes,
          from + row * map.row_bytes() + (first - x[0]) * map.element_bytes,
          static_cast<size_t>(last - first) * map.element_bytes);
  });
}

// --- descriptors --------------------------------------------------------------------------------

OperandDescriptor decode_descriptor(uint64_t bits) {
  static constexpr Swizzle kModes[4] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
  const auto field = [&](int at, int width) {
    return static_cast<uint32_t>(bits >> at & ((uint64_t{1} << width) - 1));
  };
  return {field(0, 14) << 4,    field(16, 14) << 4,
          field(32, 14) << 4,   field(49, 3),
          kModes[field(62, 2)], (field(14, 2) | field(30, 2) | field(46, 3) | field(52, 10)) != 0};
}

const char* check_descriptor(const OperandDescriptor& d, bool mn_major) {
  if (d.reserved_bits) return "reserved bits are set";
  if (d.base_offset != 0) return "not modelled: a base offset";
  const unsigned span = swizzle_span(d.swizzle), pattern = 8 * span;
  if (d.swizzle == Swizzle::kNone) return nullptr;
  if (d.start % pattern >= span) return "the start is not in the first row of a swizzle pattern";
  if (mn_major && d.start % pattern != 0) return "the start is not that of a swizzle pattern";
  if (d.stride == 0 || d.stride % pattern != 0)
    return "the stride byte offset is no multiple of the swizzle pattern";
  if (mn_major && d.leading % pattern != 0)
    return "the leading byte offset is no multiple of the swizzle pattern";
  return nullptr;
}

uint32_t operand_chunk(const OperandDescriptor& d, unsigned mn, unsigned k, unsigned element_bytes,
                       bool mn_major) {
  const unsigned per_chunk = 16 / element_bytes;
  const unsigned span = swizzle_span(d.swizzle);
  if (!mn_major) {
    // Rows of a span, eight to a group; without swizzle each of the two chunks of K is a group of
    // its own. The leading offset counts for that case alone.
    const unsigned chunk = k / per_chunk;
    const uint32_t along = d.swizzle == Swizzle::kNone ? chunk * d.leading : chunk * 16;
    return swizzled(d.start + mn % 8 * span + mn / 8 * d.stride + along, d.swizzle);
  }
  // Rows of a span along MN, eight values of K to a group.
  const unsigned chunk = mn / per_chunk, chunks = span / 16;
  if (d.swizzle == Swizzle::kNone)
    return d.start + k % 8 * 16 + k / 8 * d.leading + chunk * d.stride;
  return swizzled(
      d.start + k % 8 * span + chunk % chunks * 16 + chunk / chunks * d.leading + k / 8 * d.stride,
      d.swizzle);
}

}  // namespace emu
