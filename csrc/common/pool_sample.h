// How stochastic pooling draws, to the bit, for every backend and layout.
//
// Output i (its index in the contiguous [N, C, O, P, Q], whatever the layout) draws one uniform
// number u in [0, 1) from Philox under the call's seed. Over the real elements of its window in
// row-major order, padding left out:
//   total = sum of pool_weight(x), in acc_t, one addition after the other
//   the first element whose running sum exceeds u total is taken.
// A NaN wins, the last of several; the first +inf wins over everything finite; where no weight is
// positive, the window's first real element is taken. So y is always x at the index.
// Source: Zeiler and Fergus, "Stochastic Pooling for Regularization of Deep Convolutional Neural
// Networks" (ICLR 2013), section 3.
#pragma once
#include "philox.h"

namespace fastconv {

// Of one element; a NaN stays one.
template <class A>
FC_HOST_DEVICE A pool_weight(A x) {
  return x < A(0) ? A(0) : x;
}

// 24 random bits, or 53.
FC_HOST_DEVICE void pool_uniform(uint64_t seed, uint64_t output, float* u) {
  *u = static_cast<float>(philox(seed, output).word[0] >> 8) * 0x1p-24f;
}
FC_HOST_DEVICE void pool_uniform(uint64_t seed, uint64_t output, double* u) {
  const PhiloxWords r = philox(seed, output);
  const uint64_t bits = (static_cast<uint64_t>(r.word[1]) << 32 | r.word[0]) >> 11;
  *u = static_cast<double>(bits) * 0x1p-53;
}

// One element of the second walk over a window. `sum` runs from 0, `taken` starts as false; the
// tap to keep starts as the window's first. Returns whether this element is now the one to keep.
template <class A>
FC_HOST_DEVICE bool pool_takes(A x, A total, A threshold, A* sum, bool* taken) {
  if (total != total) return x != x;
  const A weight = pool_weight(x);
  *sum += weight;
  if (*taken || !(weight > A(0))) return false;
  // Rounding may leave every sum at or below the threshold: then the last positive one is kept.
  // The difference is NaN once the sum is infinite.
  *taken = *sum > threshold || *sum - *sum != A(0);
  return true;
}

}  // namespace fastconv
