// What the NCHW kernels share: how a block's part of the planes is laid out.
#pragma once
#include "pool_geometry.cuh"
#include "pool_values.cuh"

namespace fastconv::cuda {

constexpr int kPoolPlanesThreads = 256;

// A block has neighbouring planes (n,c) as a whole where they are small, else a strip of rows of
// one: in both cases one run of x, one of y.
template <class scalar_t>
struct PoolPlanes {
  int in_h, in_w, out_h, out_w, pad_h, pad_w;
  int kernel, stride;  // of both axes; the forward kernels know them
  int planes;
  int images;  // planes of a block
  int rows;    // of a strip: of y, in dgrad of dx; all of them if images > 1
  int walk;    // forward: rows of y that one thread walks down
  // In bytes, from the start of the block's shared memory; 0 is where x lies, in dgrad dy.
  int stage, index_stage;
  FastDivmod strips, walks, columns, by_rows, by_stride;
  FastDivmod out_columns, by_out_rows;  // dgrad
  float divisor;                        // sums are divided by it; 0: by the elements counted
  float whole;                          // and then multiplied by it
  float share;                          // dgrad: whole / divisor, 0 as above
  bool squares;                         // kLp of power 2
  bool include_pad, long_index;
  const scalar_t *x, *y, *dy;
  scalar_t* result;
  void* index;
  const uint64_t* seed;

  // Elements of the window from `origin` that an average counts along an axis.
  __device__ __forceinline__ int counted(int origin, int in, int pad, int taps) const {
    const int begin = include_pad ? origin : max(origin, 0);
    return min(origin + taps, in + (include_pad ? pad : 0)) - begin;
  }
};

}  // namespace fastconv::cuda
