// What the kernels of every window are given beside the geometry: pointers, and what finishes a
// window. Row-major taps of a window have 32 bits.
#pragma once
#include "pool_geometry.cuh"
#include "pool_values.cuh"

namespace fastconv::cuda {

template <class scalar_t>
struct PoolArguments {
  PoolGeometry g;
  PoolPower power;
  acc_t<scalar_t> divisor;  // kSum: of every window; 0: the elements it counts
  acc_t<scalar_t> whole;    // kLp: taps of a whole window if partial ones are rescaled, else 0
  bool include_pad;
  bool long_index;
  const scalar_t *x, *y, *dy;
  scalar_t* result;
  void* index;  // may be null
  const uint64_t* seed;

  // Elements that the window of output (o, p, q) counts.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ acc_t<scalar_t> counted(int o, int p, int q) const {
    return static_cast<acc_t<scalar_t>>(
        static_cast<int64_t>(g.axis[0].template counted<AXES>(o, include_pad)) *
        g.axis[1].template counted<AXES>(p, include_pad) *
        g.axis[2].template counted<AXES>(q, include_pad));
  }
};

}  // namespace fastconv::cuda
