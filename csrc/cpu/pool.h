// What the pooling kernels of the CPU are told.
#pragma once
#include "../common/pool_call.h"

namespace fastconv::cpu {

// What a window's size is divided by: count[0][o] * count[1][p] * count[2][q] / scale.
struct CpuPoolCall : PoolCall {
  const double* count[3];
  double scale;
};

}  // namespace fastconv::cpu
