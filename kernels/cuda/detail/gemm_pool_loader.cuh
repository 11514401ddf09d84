// The tile iterator of gemm_loader.cuh for an operand that is the maximum over 3x3 windows of a
// tensor, stride 1, padding 1: a pixel's nine neighbours are read while a stage is filled, and the
// maximum goes to shared memory. What pooling would have written is never stored.
//
// A row or column of the window outside of the image is replaced by the centre's, which is in the
// window anyhow: the maximum is that over the window padded with -inf, and no load depends on a
// test. NaN wins, as in max_pool2d.
//
// Nine reads of L1 for one element of the operand; from L2 about one and a half times the tile, for
// neighbouring pixels share their windows.
#pragma once
#include "gemm_loader.cuh"
#include "nan_max.cuh"

namespace fastconv::cuda {

// Where the windows of a tile's pixels are, in bytes. In the table: the centre's offset, the way to
// the row above and to that below, and bits for the columns to the left and the right (-1: no
// pixel).
struct WindowMap {
  FastDivmod image, row;  // by pixels per image, per row
  int first, count;       // of the tile, within its first image
  int rows, row_pixels;
  int pixel_bytes;
  uint32_t image_bytes;

  __device__ __forceinline__ Coordinate at(int i) const {
    if (i >= count) return {0, 0, 0, -1};
    uint32_t pixel, w;
    const uint32_t n = image.divmod(first + i, pixel);
    const int h = static_cast<int>(row.divmod(pixel, w));
    const int row_bytes = row_pixels * pixel_bytes;
    return {static_cast<int>(n * image_bytes + pixel * pixel_bytes), h > 0 ? -row_bytes : 0,
            h + 1 < rows ? row_bytes : 0,
            (w > 0 ? 1 : 0) + (static_cast<int>(w) + 1 < row_pixels ? 2 : 0)};
  }
};

template <class Operand, int NUM_THREADS, int VEC, class Threads>
class PoolGemmLoader {
  using scalar_t = typename Operand::scalar_t;
  static constexpr int UNITS = Operand::COLS / VEC;
  static constexpr int LANES = UNITS < 32 ? UNITS : 32;
  static constexpr int UNIT_STEPS = UNITS / LANES;
  static constexpr int ROW_STEP = NUM_THREADS / LANES, ROW_STEPS = Operand::ROWS / ROW_STEP;
  static constexpr bool K_CONTIGUOUS = Operand::K_CONTIGUOUS;
  static_assert(VEC == 1 || (VEC * sizeof(scalar_t) == 16 && K_CONTIGUOUS));
  static_assert((ROW_STEP & (ROW_STEP - 1)) == 0 && Operand::ROWS % ROW_STEP == 0);

 public:
  static constexpr int TABLE_BYTES = Operand::EXTENT * 16;

  // k_elements: from one channel to the next; channels: how many there are from `base` on.
  // A barrier must follow before the first fetch.
  __device__ __forceinline__ PoolGemmLoader(const scalar_t* base, const WindowMap& windows,
                                            int k_elements, int channels, int part,
                                            unsigned char* table)
      : base_(reinterpret_cast<const unsigned char*>(base)),
        to_(part + Operand::offset(row(0), unit(0) * VEC)),
        k_bytes_(k_elements * static_cast<int>(sizeof(scalar_t))),
        pixel_bytes_(windows.pixel_bytes),
        left_(channels),
        table_(reinterpret_cast<Coordinate*>(table)) {
    for (int i = Threads::index(); i < Operand::EXTENT; i += NUM_THREADS) table_[i] = windows.at(i);
  }
  __device__ __forceinline__ void start() {}

  // Into a stage that nobody reads before the next barrier, so that nothing is left to store().
  __device__ __forceinline__ void fetch(scalar_t* ring) {
#pragma unroll
    for (int u = 0; u < UNIT_STEPS; ++u) {
#pragma unroll 2
      for (int r = 0; r < ROW_STEPS; ++r) {
        const int column = unit(u) * VEC;
        const int k = K_CONTIGUOUS ? column : row(r);
        const Coordinate window = table_[K_CONTIGUOUS ? row(r) : column];
        const bool exists = k < left_ && window.w >= 0;
        const unsigned char* from =
            base_ + (static_cast<uint32_t>(window.offset) + static_cast<uint32_t>(k * k_bytes_));
        scalar_t* const to = ring + Operand::moved(to_, r * ROW_STEP, u * LANES * VEC);
        if constexpr (VEC == 1)
          *to = exists ? from_acc<scalar_t>(maximum(from, window)) : from_acc<scalar_t>(0.0f);
        else
          *reinterpret_cast<uint4*>(to) = exists ? vector_maximum(from, window) : uint4{0, 0, 0, 0};
      }
    }
    base_ += static_cast<int64_t>(Operand::BLOCK_K) * k_bytes_;
    left_ -= Operand::BLOCK_K;
  }
  __device__ __forceinline__ void store(scalar_t*) const {}
  __device__ __forceinline__ void move(int elements) { to_ += elements; }

 private:
  static __device__ __forceinline__ int row(int i) {
    return Threads::index() / LANES + i * ROW_STEP;
  }
  static __device__ __forceinline__ int unit(int i) { return Threads::index() % LANES + i * LANES; }

  // f(address) for the eight neighbours.
  template <class F>
  __device__ __forceinline__ void around(const unsigned char* centre, const Coordinate& window,
                                         const F& f) const {
    const int left = window.w & 1 ? -pixel_bytes_ : 0, right = window.w & 2 ? pixel_bytes_ : 0;
    f(centre + left);
    f(centre + right);
    const unsigned char* const rows[2] = {centre + window.d, centre + window.h};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      f(rows[i] + left);
      f(rows[i]);
      f(rows[i] + right);
    }
  }
  __device__ __forceinline__ float maximum(const unsigned char* centre,
                                           const Coordinate& window) const {
    float best = to_acc(*reinterpret_cast<const scalar_t*>(centre));
    around(centre, window, [&](const unsigned char* from) {
      best = max_or_nan(best, to_acc(*reinterpret_cast<const scalar_t*>(from)));
    });
    return best;
  }
  __device__ __forceinline__ uint4 vector_maximum(const unsigned char* centre,
                                                  const Coordinate& window) const {
    uint4 best = *reinterpret_cast<const uint4*>(centre);
    around(centre, window, [&](const unsigned char* from) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      best = {larger(best.x, v.x), larger(best.y, v.y), larger(best.z, v.z), larger(best.w, v.w)};
    });
    return best;
  }
  static __device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) {
    if constexpr (sizeof(scalar_t) == 4)
      return __float_as_uint(max_or_nan(__uint_as_float(a), __uint_as_float(b)));
    else
      return max_or_nan_pair<scalar_t>(a, b);
  }

  const unsigned char* base_;
  int to_;  // the thread's first element in the present stage
  int k_bytes_, pixel_bytes_;
  int left_;
  Coordinate* table_;
};

}  // namespace fastconv::cuda
