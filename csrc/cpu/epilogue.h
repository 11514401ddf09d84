// What the CPU's convolutions do with y as they store it: the epilogue (common/epilogue.h), and the
// moments that batch normalisation in training wants of it.
#pragma once
#include "../common/epilogue.h"

namespace fastconv::cpu {

struct CpuEpilogue : Epilogue {
  // Where y is a slice, its residual lies closer together: y_unit elements of what holds the slice
  // (one image, or one pixel where channels are innermost) are residual_unit elements there. 0:
  // both have the same strides.
  int64_t y_unit = 0, residual_unit = 0;

  // The residual's offset where y's is `y`.
  FC_HOST_DEVICE int64_t residual_at(int64_t y) const {
    return y_unit == 0 ? y : y / y_unit * residual_unit + y % y_unit;
  }
};

// Where a convolution leaves the mean and the sum of squares about it of every channel, of each of
// the blocks that it cuts the pixels into; which they are follows from the problem, the layout and
// the instruction set, never from the threads. K = 0: not wanted.
struct Moments {
  int64_t K;
  double *mean, *m2;  // [blocks][K]
  double* count;      // [blocks]
};

}  // namespace fastconv::cpu
