// Geometry in integers, for the `.packed` ops: reading lists takes the dispatcher as long as a
// small problem. fastconv/problem.py packs.
#pragma once
#include "torch_tensors.h"

namespace fastconv {

// stride, padding and dilation of each axis, 7 bits each in this order, the first axis lowest.
struct Moves {
  IntList stride, padding, dilation;

  Moves(int64_t packed, int rank) {
    for (int axis = 0; axis < rank; ++axis)
      for (IntList* list : {&stride, &padding, &dilation}) {
        list->push_back(packed & 127);
        packed >>= 7;
      }
  }
};

inline int spatial_rank(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() >= 3 && t.dim() <= 5, "expected 3 to 5 dimensions, got ", t.dim());
  return static_cast<int>(t.dim()) - 2;
}

// Adds spatial extents of 21 bits each to what is there.
inline IntList unpacked_size(IntList size, int64_t packed, int rank) {
  for (int axis = 0; axis < rank; ++axis) size.push_back(packed >> 21 * axis & 0x1fffff);
  return size;
}

}  // namespace fastconv
