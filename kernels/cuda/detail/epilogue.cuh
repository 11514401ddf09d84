// What follows a convolution's sum and bias before it is stored, the same for every kernel that
// stores a convolution's result:
//
//   y = act(sum + residual)   or   act(sum) + residual       act: none, ReLU, leaky, ReLU6, SiLU
//
// in acc_t, before the one rounding to y's dtype. Which of it there is, is known at launch only: a
// template argument would multiply the kernels, a test that a whole grid answers alike costs one
// branch. The activations made of straight lines are one formula with three numbers,
//   act(v) = min(max(v > 0 ? v : v slope, low), high)
// with slope 1 and bounds of NaN, no comparison with which is true, where an activation has none.
// The values' own NaN pass for the same reason.
//
// y may be a channel slice of a larger dense tensor: then kernels have y's strides in its place,
// and work out the residual's, which is dense, only where there is one.
#pragma once
#include "common/epilogue.h"
#include "scalar.cuh"

namespace fastconv::cuda {

// Part of a kernel's arguments; all zero: nothing follows the bias.
template <class A>
struct StoreEpilogue {
  const void* residual;  // dense, y's dtype and layout; may be null
  A slope, low, high;
  bool any;  // false: v as it is, whatever else is here
  bool silu, residual_after;
};

template <class A>
inline StoreEpilogue<A> store_epilogue(const Epilogue& e) {
  constexpr A none = static_cast<A>(NAN);
  StoreEpilogue<A> s{e.residual, A(1), none, none};
  s.any = !e.plain();
  s.silu = e.activation == Activation::kSilu;
  s.residual_after = e.residual_after;
  if (e.activation == Activation::kLeakyRelu) s.slope = static_cast<A>(e.slope);
  if (e.activation == Activation::kRelu || e.activation == Activation::kRelu6) s.low = A(0);
  if (e.activation == Activation::kRelu6) s.high = A(6);
  return s;
}

// 1 / (1 + exp(-v)) times `by`. The approximate quotient is two units in the last place off, and
// saves the branches of an exact one at every value.
__device__ __forceinline__ float times_sigmoid(float by, float v) {
  return __fdividef(by, 1.f + expf(-v));
}
__device__ __forceinline__ double times_sigmoid(double by, double v) { return by / (1. + exp(-v)); }

template <class A, int COUNT>
__device__ __forceinline__ void activate_values(const StoreEpilogue<A>& e, A (&v)[COUNT]) {
  if (e.silu) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = times_sigmoid(v[i], v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      A a = v[i] > A(0) ? v[i] : v[i] * e.slope;
      a = a < e.low ? e.low : a;
      v[i] = a > e.high ? e.high : a;
    }
  }
}

// dy -> dy act'(v), at the corners as PyTorch.
template <class A, int COUNT>
__device__ __forceinline__ void activate_gradients(const StoreEpilogue<A>& e, const A (&v)[COUNT],
                                                   A (&dy)[COUNT]) {
  if (e.silu) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const A s = times_sigmoid(A(1), v[i]);
      dy[i] = dy[i] * s * (A(1) + v[i] * (A(1) - s));
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const A g = v[i] > A(0) ? dy[i] : dy[i] * e.slope;
      dy[i] = v[i] <= e.low || v[i] >= e.high ? A(0) : g;
    }
  }
}

// `load(r)` fills r[COUNT] with the residuals of v[COUNT]; it is called where there is one.
template <class A, int COUNT, class Load>
__device__ __forceinline__ void apply_epilogue(const StoreEpilogue<A>& e, A (&v)[COUNT],
                                               const Load& load) {
  A r[COUNT] = {};
  const bool has_residual = e.residual != nullptr;
  if (has_residual) load(r);
  if (has_residual && !e.residual_after) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] += r[i];
  }
  activate_values(e, v);
  if (has_residual && e.residual_after) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] += r[i];
  }
}

// COUNT neighbours that lie aligned to all of them, widened: one load of up to 16 bytes.
template <class scalar_t, int COUNT>
__device__ __forceinline__ void load_aligned(const scalar_t* from, acc_t<scalar_t> (&to)[COUNT]) {
  constexpr int BYTES = COUNT * static_cast<int>(sizeof(scalar_t));
  constexpr int EACH = BYTES > 16 ? 16 / static_cast<int>(sizeof(scalar_t)) : COUNT;
  struct alignas(EACH * sizeof(scalar_t)) Part {
    scalar_t v[EACH];
  };
#pragma unroll
  for (int i = 0; i < COUNT; i += EACH) {
    const Part part = *reinterpret_cast<const Part*>(from + i);
#pragma unroll
    for (int j = 0; j < EACH; ++j) to[i + j] = to_acc(part.v[j]);
  }
}

template <class scalar_t, int COUNT>
__device__ __forceinline__ void store_aligned(scalar_t* to, const acc_t<scalar_t> (&from)[COUNT]) {
  constexpr int BYTES = COUNT * static_cast<int>(sizeof(scalar_t));
  constexpr int EACH = BYTES > 16 ? 16 / static_cast<int>(sizeof(scalar_t)) : COUNT;
  struct alignas(EACH * sizeof(scalar_t)) Part {
    scalar_t v[EACH];
  };
#pragma unroll
  for (int i = 0; i < COUNT; i += EACH) {
    Part part;
#pragma unroll
    for (int j = 0; j < EACH; ++j) part.v[j] = from_acc<scalar_t>(from[i + j]);
    *reinterpret_cast<Part*>(to + i) = part;
  }
}

}  // namespace fastconv::cuda
