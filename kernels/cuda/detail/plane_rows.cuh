// A box of NCHW planes x rows x columns, copied to shared memory as it lies: 16 bytes at a time
// whatever the alignment of its rows, by cp.async, and singly at the ends of a run.
#pragma once
#include "async_copy.cuh"
#include "platform.cuh"

namespace fastconv::cuda {

// Elements of a 16-byte piece.
template <class scalar_t>
constexpr int kPiece = 16 / sizeof(scalar_t);

// Where a box starts in shared memory. An element's place there differs from its global address by
// a multiple of 16 bytes: `phase` is the first element's place within a piece, and the pitches are
// congruent to the strides of global memory modulo a piece (plane_pitch()).
struct RowBox {
  int phase, row_pitch, plane_pitch;

  __device__ __forceinline__ int at(int plane, int row, int column) const {
    return phase + plane * plane_pitch + row * row_pitch + column;
  }
};

// The smallest pitch >= extent that is congruent to `stride` modulo a piece.
template <class scalar_t>
__host__ __device__ inline int congruent_pitch(int64_t stride, int extent) {
  const int piece = kPiece<scalar_t>;
  const int off = static_cast<int>((stride - extent) % piece);
  return extent + (off < 0 ? off + piece : off);
}

// Elements of shared memory that a box may take.
template <class scalar_t>
inline int64_t box_elements(int64_t planes, int64_t rows, int row_pitch, int plane_pitch) {
  return (planes - 1) * plane_pitch + rows * row_pitch + kPiece<scalar_t>;
}

template <class scalar_t>
__device__ __forceinline__ int phase_of(const scalar_t* from) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(from) / sizeof(scalar_t) % kPiece<scalar_t>);
}

// Issues the copies of [planes][rows][columns] from `from`, whose rows are row_stride and planes
// plane_stride apart; the caller commits, waits and synchronises. `tile` is aligned to 16 bytes.
// All threads of the block call it; it may be empty.
template <class scalar_t>
__device__ __forceinline__ void copy_box(scalar_t* tile, const RowBox& box, const scalar_t* from,
                                         int64_t plane_stride, int row_stride, int planes, int rows,
                                         int columns, int thread, int threads) {
  if (rows <= 0 || columns <= 0) return;
  // Whole rows that lie the same way in both places are one run; so are whole planes.
  int row_pitch = box.row_pitch;
  if (columns == row_stride && columns == row_pitch) {
    columns *= rows;
    rows = 1;
    row_pitch = 0;
    if (columns == plane_stride && columns == box.plane_pitch) {
      columns *= planes;
      planes = 1;
    }
  }
  constexpr int kElements = kPiece<scalar_t>;
  const int runs = planes * rows;
  const int pieces = columns / kElements + 2;  // of one run, its two ends included
  const int begin = phase_of(from);
#pragma unroll 1
  for (int i = thread; i < runs * pieces; i += threads) {
    const int run = runs == 1 ? 0 : i / pieces;
    const int plane = rows == 1 ? run : run / rows, row = run - plane * rows;
    const scalar_t* const source =
        from + plane * plane_stride + static_cast<int64_t>(row) * row_stride;
    const int place = begin + plane * box.plane_pitch + row * row_pitch;
    // Elements [first, first + kElements) of the run are one aligned piece.
    const int first = (i - run * pieces) * kElements - place % kElements;
    if (first >= 0 && first + kElements <= columns) {
      cp_async<16>(tile + place + first, source + first, true);
    } else {
#pragma unroll 1
      for (int e = max(first, 0); e < min(first + kElements, columns); ++e)
        tile[place + e] = source[e];
    }
  }
}

}  // namespace fastconv::cuda
