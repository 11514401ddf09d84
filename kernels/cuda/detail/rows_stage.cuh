// What conv_fprop_rows.cuh has in shared memory, and how it gets there:
//
//   weights  [steps][BLOCK_N][2 chunks] of 16 bytes, chunk c of filter n at c ^ (n / 4 & 1), so
//   that
//            the eight rows of an ldmatrix touch every bank once
//   table    [chunks + 2][4] of RowsChunk: where chunk c of a window is, seen from the window, for
//            each lane of four, and which of its elements are the window's
//   bias     [BLOCK_N] in fp32, zeros where there is none
//   rows     two tiles' rows of x, one being read while the other comes: [T][box_h][row_bytes], and
//            where needed the same once more, shifted by an element
#pragma once
#include <cstring>

#include "async_copy.cuh"
#include "conv_rows_params.cuh"
#include "mma.cuh"

namespace fastconv::cuda {

struct alignas(8) RowsChunk {
  int offset;     // bytes
  uint32_t mask;  // of a word
};

// A tile's first pixel.
struct RowsPlace {
  int image, plane, row, column;
};
__device__ __forceinline__ RowsPlace rows_place(const ConvRowsParams& p, int tile) {
  uint32_t row, column, plane;
  const uint32_t rest = p.tiles_w.divmod(static_cast<uint32_t>(tile), column);
  const uint32_t outer = p.tiles_h.divmod(rest, row);
  const uint32_t image = p.planes.divmod(outer, plane);
  return {static_cast<int>(image), static_cast<int>(plane), static_cast<int>(row) * p.tile_h,
          static_cast<int>(column) * p.tile_w};
}

// Row and column of a unit within its tile.
struct RowsUnit {
  int row, column;
};
__device__ __forceinline__ RowsUnit rows_unit(const ConvRowsParams& p, int unit) {
  return {unit >> p.units_w_log, (unit & ((1 << p.units_w_log) - 1)) * 8};
}

// Of element e of a chunk: its place among a filter's, in bytes.
template <class Tile>
__device__ __forceinline__ int rows_weight_place(int n, int k) {
  constexpr int CHUNK = Tile::CHUNK, SIZE = 16 / CHUNK;
  return k / (2 * CHUNK) * Tile::STEP_BYTES + n * 32 + ((k / CHUNK & 1) ^ (n >> 2 & 1)) * 16 +
         k % CHUNK * SIZE;
}

// The weights of filters n0 and on: [K, T R, S C] as they lie, by 16 bytes, each element to its
// place. The places between are zero already.
template <class Tile>
__device__ __forceinline__ void rows_load_weights(const ConvRowsParams& p, int n0,
                                                  unsigned char* to) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int VEC = Tile::CHUNK, TOGETHER = 4;  // loads under way
  const int filter = p.tap_rows * p.window;
  const int elements = min(Tile::BLOCK_N, p.filters - n0) * filter;
  const scalar_t* const from = static_cast<const scalar_t*>(p.w) + int64_t{n0} * filter;
#pragma unroll 1
  for (int base = 0; base < elements; base += TOGETHER * Tile::NUM_THREADS * VEC) {
    scalar_t value[TOGETHER][VEC];
#pragma unroll
    for (int j = 0; j < TOGETHER; ++j) {
      const int at = base + (j * Tile::NUM_THREADS + static_cast<int>(threadIdx.x)) * VEC;
      if (p.w_vec && at + VEC <= elements) {
        const uint4 vector = *reinterpret_cast<const uint4*>(from + at);
        memcpy(value[j], &vector, 16);
      } else {
#pragma unroll
        for (int e = 0; e < VEC; ++e)
          if (at + e < elements) value[j][e] = from[at + e];
      }
    }
#pragma unroll
    for (int j = 0; j < TOGETHER; ++j) {
      const int at = base + (j * Tile::NUM_THREADS + static_cast<int>(threadIdx.x)) * VEC;
      int n = at / filter, tap = (at - n * filter) / p.window;
      int element = at - n * filter - tap * p.window;
      int k = tap * p.chunks * VEC + p.lead + element;
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        if (at + e >= elements) break;
        unsigned char* const place = to + rows_weight_place<Tile>(n, k);
        if constexpr (Tile::MATH == GemmMath::kTf32)  // once, not at every product
          *reinterpret_cast<uint32_t*>(place) = to_tf32(value[j][e]);
        else
          *reinterpret_cast<scalar_t*>(place) = value[j][e];
        ++k;
        if (++element == p.window) {
          element = 0;
          k += p.chunks * VEC - p.window;
          if (++tap == p.tap_rows) {
            tap = 0;
            k = p.lead;
            ++n;
          }
        }
      }
    }
  }
}

// Entries behind the last chunk, of which an odd number's step and the loop's look ahead read: no
// element is the window's.
template <class Tile>
__device__ __forceinline__ void rows_fill_table(const ConvRowsParams& p, RowsChunk* table) {
  constexpr int CHUNK = Tile::CHUNK, PER_WORD = CHUNK / 4;
  for (int i = threadIdx.x; i < (2 * p.steps + 2) * 4; i += Tile::NUM_THREADS) {
    const int chunk = i / 4, tap_row = chunk / p.chunks, within = chunk - tap_row * p.chunks;
    const int plane = tap_row / p.taps_h, tap = tap_row - plane * p.taps_h;
    RowsChunk entry{0, 0};
    if (tap_row < p.tap_rows) {
      const int row = plane * static_cast<int>(p.box_h.divisor) + tap * p.dilation[1];
      entry.offset = row * p.row_bytes + within * 16 + i % 4 * 4;
      const int last = p.lead + p.window;
#pragma unroll
      for (int e = 0; e < PER_WORD; ++e) {
        const int element = within * CHUNK + i % 4 * PER_WORD + e;
        if (element >= p.lead && element < last)
          entry.mask |= (PER_WORD == 1 ? 0xFFFFFFFFu : 0xFFFFu) << (e * 16);
      }
    }
    table[i] = entry;
  }
}

// Calls copy(i, from, inside) for the tile's copies of ELEMENTS elements that are this thread's.
template <class Tile, int ELEMENTS, class Copy>
__device__ __forceinline__ void rows_each_copy(const ConvRowsParams& p, const RowsPlace& place,
                                               const Copy& copy) {
  using scalar_t = typename Tile::scalar_t;
  const scalar_t* const x = static_cast<const scalar_t*>(p.x);
  const int d0 = place.plane * p.stride[0] - p.padding[0];
  const int h0 = place.row * p.stride[1] - p.padding[1];
  const int first = place.column * p.column_step + p.first;
  const int64_t image = place.image * p.image_rows;
#pragma unroll 1
  for (int i = threadIdx.x; i < p.copies; i += Tile::NUM_THREADS) {
    uint32_t column, down;
    const uint32_t row = p.row_copies.divmod(static_cast<uint32_t>(i), column);
    const uint32_t plane = p.box_h.divmod(row, down);
    const int d = d0 + static_cast<int>(plane) * p.dilation[0], h = h0 + static_cast<int>(down);
    const int element = first + static_cast<int>(column) * ELEMENTS;
    const bool row_exists = d >= 0 && d < p.in[0] && h >= 0 && h < p.in[1];
    copy(i, x + (image + static_cast<int64_t>(d) * p.in[1] + h) * p.row_elements + element,
         [&](int e) { return row_exists && element + e >= 0 && element + e < p.row_elements; });
  }
}

// A tile's rows; what x lacks of them is zero. Copies of 16 and 4 bytes are in x's row as a whole
// or not at all, for they begin at multiples of their size on either side.
template <class Tile>
__device__ __forceinline__ void rows_stage(const ConvRowsParams& p, const RowsPlace& place,
                                           unsigned char* to) {
  using scalar_t = typename Tile::scalar_t;
  const auto start = [&](auto bytes) {
    constexpr int BYTES = decltype(bytes)::value;
    rows_each_copy<Tile, BYTES / static_cast<int>(sizeof(scalar_t))>(
        p, place, [&](int i, const scalar_t* from, const auto& inside) {
          cp_async<BYTES>(to + i * BYTES, from, inside(0));
        });
  };
  if (p.copy == RowsCopy::kSixteen)
    start(std::integral_constant<int, 16>());
  else if (sizeof(scalar_t) == 4 || p.copy == RowsCopy::kFour)
    start(std::integral_constant<int, 4>());
  else if constexpr (sizeof(scalar_t) == 2)
    rows_each_copy<Tile, 2>(p, place, [&](int i, const scalar_t* from, const auto& inside) {
      uint16_t v[2];
#pragma unroll
      for (int e = 0; e < 2; ++e)
        v[e] = inside(e) ? reinterpret_cast<const uint16_t*>(from)[e] : uint16_t{0};
      *reinterpret_cast<uint32_t*>(to + i * 4) = v[0] | static_cast<uint32_t>(v[1]) << 16;
    });
}

// The rows once more, an element further on: windows that begin at odd elements are aligned there.
template <class Tile>
__device__ __forceinline__ void rows_shift(const ConvRowsParams& p, unsigned char* rows) {
  const uint32_t* const from = reinterpret_cast<const uint32_t*>(rows);
  uint32_t* const to = reinterpret_cast<uint32_t*>(rows + p.shifted);
  const int words = p.copies * (p.copy == RowsCopy::kSixteen ? 4 : 1);
  for (int i = threadIdx.x; i < words; i += Tile::NUM_THREADS)
    to[i] = from[i] >> 16 | (i + 1 < words ? from[i + 1] << 16 : 0u);
}

}  // namespace fastconv::cuda
