// What pooling does with the elements of a window, whatever kernel walks over it: maxima, powers,
// and the reductions of each kind.
#pragma once
#include <cstdint>

#include "common/pool_call.h"
#include "common/pool_sample.h"
#include "platform.cuh"
#include "scalar.cuh"

namespace fastconv::cuda {

__device__ __forceinline__ float lowest(float) { return __int_as_float(0xff800000); }
__device__ __forceinline__ double lowest(double) {
  return __longlong_as_double(static_cast<long long>(0xfff0000000000000ull));
}

// Whether v replaces the maximum so far: of ties the first stays, of NaNs the last.
template <class A>
__device__ __forceinline__ bool takes_over(A v, A best) {
  return v > best || v != v;
}

// p of an Lp pooling and 1 / p, from the host, in the type that powers are taken in.
struct PoolPower {
  double p, root;

  PoolPower() = default;
  explicit PoolPower(double power) : p(power), root(1 / power) {}
};

__device__ __forceinline__ float any_power(float v, double p) {
  return powf(v, static_cast<float>(p));
}
__device__ __forceinline__ double any_power(double v, double p) { return pow(v, p); }
__device__ __forceinline__ float root_of(float v) { return sqrtf(v); }
__device__ __forceinline__ double root_of(double v) { return sqrt(v); }

// v^p; the small integers without a call.
template <class A>
__device__ __forceinline__ A raise(A v, double p) {
  if (p == 2) return v * v;
  if (p == 1) return v;
  if (p == 3) return v * v * v;
  if (p == 0) return A(1);
  return any_power(v, p);
}

// v^(1/p).
template <class A>
__device__ __forceinline__ A take_root(A v, const PoolPower& power) {
  if (power.p == 2) return root_of(v);
  if (power.p == 1) return v;
  return any_power(v, power.root);
}

// Whether Lp sends nothing back to a window: its sum is 0 or, for power 1 alone, NaN, as PyTorch's
// derivative of |sum| has it.
template <class A>
__device__ __forceinline__ bool is_flat(A y, bool first_power) {
  return first_power ? !(y < A(0) || y > A(0)) : y == A(0);
}

// What one output of Lp sends to its window, but for x^(p-1): dy y^(1-p).
template <class A>
__device__ __forceinline__ A lp_slope(A dy, A y, double p) {
  if (is_flat(y, p == 1)) return A(0);
  if (p == 2) return dy / y;
  if (p == 1) return dy;
  return dy * any_power(y, 1 - p);
}

// What happens to the sum of a window: kSum divides it by the elements counted, kLp takes the root
// of it, scaled up where the window is partial, kExpectation divides it by the sum of weights.
//   counted   elements of the window, or what stands in for them
//   whole     kLp: taps of a whole window if partial ones are rescaled, else 0
template <PoolKind KIND, class A>
__device__ __forceinline__ A finish(A sum, A weights, A counted, A whole, const PoolPower& power) {
  if constexpr (KIND == PoolKind::kSum) return sum / counted;
  if constexpr (KIND == PoolKind::kLp) {
    if (whole != A(0)) sum = sum / counted * whole;
    return take_root(sum, power);
  }
  if constexpr (KIND == PoolKind::kExpectation) return weights == A(0) ? A(0) : sum / weights;
  return sum;
}

// A window under reduction, its elements taken in row-major order. kSample walks twice: first()
// over all, then second() over all.
template <PoolKind KIND, class A>
struct PoolReduction {
  A value, weights;  // weights: kExpectation's denominator, kSample's running sum
  A total;           // kSample
  int tap;
  bool taken;

  __device__ __forceinline__ void start(int first_tap) {
    value = KIND == PoolKind::kMax ? lowest(A()) : A(0);
    weights = total = A(0);
    tap = first_tap;
    taken = false;
  }

  __device__ __forceinline__ void first(A x, int at, double p) {
    if constexpr (KIND == PoolKind::kMax) {
      if (takes_over(x, value)) value = x, tap = at;
    } else if constexpr (KIND == PoolKind::kSum) {
      value += x;
    } else if constexpr (KIND == PoolKind::kLp) {
      value += raise(x, p);
    } else if constexpr (KIND == PoolKind::kExpectation) {
      const A weight = pool_weight(x);
      value += weight * weight;
      weights += weight;
    } else {
      total += pool_weight(x);
    }
  }

  // `threshold`: what draw() gave.
  __device__ __forceinline__ A draw(uint64_t seed, uint64_t output) const {
    A u;
    pool_uniform(seed, output, &u);
    return u * total;
  }
  __device__ __forceinline__ void second(A x, int at, A threshold, bool is_first) {
    if (pool_takes(x, total, threshold, &weights, &taken) || is_first) value = x, tap = at;
  }
};

}  // namespace fastconv::cuda
