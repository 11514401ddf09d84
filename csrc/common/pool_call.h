// One pooling as a kernel's launcher sees it, on either backend: geometry and raw pointers, no
// PyTorch.
#pragma once
#include "pool_problem.h"

namespace fastconv {

// Forward: x -> result (y) and, unless index_kind is kNone, index.
// Gather: x -> result at the places of index, 0 where they lie outside. Unpool, its inverse: x
// (shaped as the output) -> result (as the input), 0 but at the int64 places of index; of several
// elements sent to one place the last of the plane stays. Backward: kMax (and kSample): dy, index
// -> result (dx);  kSum: dy -> dx;  kLp: dy, x, y -> dx. All tensors are dense in one layout; base
// pointers are aligned to the element only; nothing is zero-sized.
struct PoolCall {
  PoolProblem p;
  DType dtype;
  PoolKind kind;
  PoolIndex index_kind;
  bool channels_last;  // [N, D, H, W, C] rather than [N, C, D, H, W]
  bool backward;
  const void* x;         // as the input
  const void* y;         // as the output
  const void* dy;        // as y
  void* result;          // y or dx
  void* index;           // uint8 or int64, as y; written forward, read backward
  const uint64_t* seed;  // kSample: one number, in the memory of the tensors' device
  bool include_pad;      // kSum: whether padding counts in a window's size
  int64_t divisor;       // kSum: what sums are divided by; 0: the window's size
  double power;          // kLp
  bool rescale;          // kLp: partial windows are scaled as if they were whole
};

}  // namespace fastconv
