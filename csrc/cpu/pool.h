// What the pooling kernels of the CPU are told, and the tables of one instruction set's kernels.
//
// Two families, by where the vectors lie:
//   rows      NCHW: vectors over Q. Rows are split into as many phases as the stride has steps, so
//             that every tap is a contiguous load; then the reduction is separable: S, then R,
//             then T, each input row reduced once (pool_rows_isa.cpp).
//   channels  NHWC: vectors over C, window by window (pool_channels_isa.cpp).
// Both take the maxima of a window in row-major order, so that a tie and a NaN end the same way.
#pragma once
#include "../common/pool_call.h"

namespace fastconv::cpu {

// What a window's size is divided by: count[0][o] * count[1][p] * count[2][q] / scale.
struct CpuPoolCall : PoolCall {
  const double* count[3];
  double scale;
};

struct PoolTable {
  // Independent pieces of work, numbered from 0, and the scratch of one thread in bytes.
  int64_t (*tasks)(const CpuPoolCall&, int threads);
  int64_t (*scratch)(const CpuPoolCall&);
  void (*run)(const CpuPoolCall&, int64_t begin, int64_t end, int threads, void* scratch);
};

}  // namespace fastconv::cpu
