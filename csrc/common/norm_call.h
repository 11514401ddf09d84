// One pass of batch normalisation with activation over a convolution's result, for a launcher of
// either backend. y stands for the convolution's result, z for what the layer returns:
//
//   pre = (y - mean[k]) * rstd[k] * weight[k] + bias[k] (+ residual)
//   z   = act(pre)                                      (+ residual)
//
// and backward, with g = dz * act'(pre) and n values per channel:
//
//   sum_g[k]  = sum of g over N and the pixels
//   sum_gy[k] = sum of g * (y - mean[k])
//   dy        = weight * rstd * (g - sum_g / n - (y - mean) * rstd^2 * sum_gy / n)
//
// (in evaluation, where mean and rstd do not depend on y, without the sums). Without mean and rstd
// kFprop is the epilogue alone, z = act(y + residual); then z may be y itself, or a channel slice.
// Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1 and section 3.
#pragma once
#include "epilogue.h"

namespace fastconv {

// Every tensor is [N, K, size], or [N, size, K] when channels_last; nothing is zero-sized.
// "Statistics" are acc_t: double for double, else float.
struct NormCall {
  int64_t N, K, size;
  bool channels_last;
  DType dtype;
  const void *y, *dz;
  const void *mean, *rstd;     // [K] statistics
  const void *weight, *bias;   // [K] statistics' type, or null: 1 and 0
  Epilogue epilogue;           // activation, residual (never a slice)
  const void *sum_g, *sum_gy;  // [K] statistics, or null: evaluation
  double count;                // n; with synchronised statistics, of all processes
  // Results; those that are not asked for are null.
  void *z, *dy, *dresidual;
  void *out_mean, *out_m2;       // statistics of y: mean, and sum of squares about it
  void *out_sum_g, *out_sum_gy;  // [K]
  void* workspace;
  int threads;  // CPU
};

enum class NormPass : int {
  kStats = 0,  // y -> out_mean, out_m2
  kFprop = 1,  // y -> z
  kSums = 2,   // dz, y -> out_sum_g, out_sum_gy
  kDgrad = 3   // dz, y, sums -> dy; dresidual where it is asked for
};

}  // namespace fastconv
