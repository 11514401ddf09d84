// Addresses of the dense operands of a convolution, in either layout, 64-bit throughout.
#pragma once
#include <cstdint>

#include "common/conv_problem.h"
#include "detail/platform.cuh"

namespace fastconv::cuda {

// x [N,C,D,H,W], w [K,C/g,T,R,S] or y [N,K,O,P,Q]: axes 0 (N or K), 1 (channels), 2..4 (spatial),
// whichever of axis 1 and the spatial axes is innermost in memory.
struct DenseTensor {
  int64_t extent[5];
  int64_t stride[5];  // elements
  bool channels_last;

  FC_HOST_DEVICE int64_t elements() const {
    return extent[0] * extent[1] * extent[2] * extent[3] * extent[4];
  }

  // Coordinates of the element at `offset`: neighbouring threads get neighbours in memory.
  FC_HOST_DEVICE void coordinates(int64_t offset, int64_t (&at)[5]) const {
    if (channels_last) {
      at[1] = offset % extent[1];
      offset /= extent[1];
    }
    for (int axis = 4; axis >= 2; --axis) {
      at[axis] = offset % extent[axis];
      offset /= extent[axis];
    }
    if (!channels_last) {
      at[1] = offset % extent[1];
      offset /= extent[1];
    }
    at[0] = offset;
  }
};

inline DenseTensor dense_tensor(int64_t outer, int64_t channels, const int64_t* spatial,
                                bool channels_last) {
  DenseTensor tensor{{outer, channels, spatial[0], spatial[1], spatial[2]}, {}, channels_last};
  int64_t stride = 1;
  if (channels_last) {
    tensor.stride[1] = stride;
    stride *= channels;
  }
  for (int axis = 4; axis >= 2; --axis) {
    tensor.stride[axis] = stride;
    stride *= tensor.extent[axis];
  }
  if (!channels_last) {
    tensor.stride[1] = stride;
    stride *= channels;
  }
  tensor.stride[0] = stride;
  return tensor;
}

inline DenseTensor dense_x(const ConvProblem& p, bool channels_last) {
  return dense_tensor(p.N, p.C, p.in, channels_last);
}
inline DenseTensor dense_w(const ConvProblem& p, bool channels_last) {
  return dense_tensor(p.K, p.channels_per_group(), p.filter, channels_last);
}
inline DenseTensor dense_y(const ConvProblem& p, bool channels_last) {
  return dense_tensor(p.N, p.K, p.out, channels_last);
}
// y as the first K channels of a dense tensor of more.
inline DenseTensor sliced_y(const ConvProblem& p, int64_t channels, bool channels_last) {
  DenseTensor y = dense_tensor(p.N, channels, p.out, channels_last);
  y.extent[1] = p.K;
  return y;
}

}  // namespace fastconv::cuda
