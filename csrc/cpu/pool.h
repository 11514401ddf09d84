// What the pooling kernels of the CPU are told, and the tables of one instruction set's kernels.
//
// Two families, by where the vectors lie:
//   rows      NCHW: vectors over Q. Rows are split into as many phases as the stride has steps, so
//             that every tap is a contiguous load; then the reduction is separable: S, then R,
//             then T, each input row reduced once (pool_rows_isa.cpp).
//   channels  NHWC: vectors over C, window by window (pool_channels_isa.cpp).
// Both take the maxima of a window in row-major order, so that a tie and a NaN end the same way.
#pragma once
#include "../common/pool_problem.h"

namespace fastconv::cpu {

enum class PoolKind : int { kMax = 0, kSum = 1, kLp = 2 };

// Forward: x -> y (and index). Backward: dy (and index, or x and y) -> dx.
struct PoolCall {
  PoolProblem p;
  DType dtype;
  PoolKind kind;
  PoolIndex index_kind;
  bool channels_last;
  bool backward;
  const void* x;   // [N, C, D, H, W] or [N, D, H, W, C], dense
  const void* y;   // kLp backward; [N, C, O, P, Q] or channels last
  const void* dy;  // as y
  void* result;    // y or dx
  void* index;     // uint8 or int64, as y; written forward, read backward
  // The sum of a window is divided by count[0][o] * count[1][p] * count[2][q] / scale.
  const double* count[3];
  double scale;
  double power;  // kLp: (sum of x^power)^(1/power)
};

struct PoolTable {
  // Independent pieces of work, numbered from 0, and the scratch of one thread in bytes.
  int64_t (*tasks)(const PoolCall&, int threads);
  int64_t (*scratch)(const PoolCall&);
  void (*run)(const PoolCall&, int64_t begin, int64_t end, int threads, void* scratch);
};

}  // namespace fastconv::cpu
