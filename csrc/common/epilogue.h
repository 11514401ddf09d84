// What follows a convolution's sum before it is stored, the same for every backend:
//
//   pre = sum + bias[k] (+ residual)
//   y   = act(pre)      (+ residual)
//
// with the residual before the activation, as in a residual network's block, or after it. A batch
// normalisation in inference is folded into weights and bias and needs nothing here.
#pragma once
#if !defined(FC_ISA)  // whose files have the activations as vectors (cpu/epilogue_isa.h)
#include <cmath>
#endif

#include "conv_problem.h"

namespace fastconv {

enum class Activation : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kRelu6 = 3, kSilu = 4 };
constexpr int kActivations = 5;

struct Epilogue {
  Activation activation = Activation::kNone;
  bool residual_after = false;  // added to the activation's result instead of its argument
  double slope = 0;             // kLeakyRelu, below zero
  // Of y's shape and dtype, or null; dense in y's layout even where y is a slice.
  const void* residual = nullptr;
  // y is the channels [.., + K) of a dense tensor with so many; 0: y is dense itself.
  int64_t y_channels = 0;

  FC_HOST_DEVICE bool plain() const {
    return activation == Activation::kNone && residual == nullptr;
  }
};

#if !defined(FC_ISA)
// Comparisons are written so that NaN stays NaN, as in PyTorch.
template <class A>
FC_HOST_DEVICE A activate(Activation activation, A v, A slope) {
  switch (activation) {
    case Activation::kNone: return v;
    case Activation::kRelu: return v < A(0) ? A(0) : v;
    case Activation::kLeakyRelu: return v > A(0) ? v : v * slope;
    case Activation::kRelu6: return v < A(0) ? A(0) : v > A(6) ? A(6) : v;
    case Activation::kSilu: return v / (A(1) + std::exp(-v));
  }
  return v;
}

// dy * act'(v); at the corners PyTorch's choice.
template <class A>
FC_HOST_DEVICE A activate_backward(Activation activation, A dy, A v, A slope) {
  switch (activation) {
    case Activation::kNone: return dy;
    case Activation::kRelu: return v <= A(0) ? A(0) : dy;
    case Activation::kLeakyRelu: return v > A(0) ? dy : dy * slope;
    case Activation::kRelu6: return v <= A(0) || v >= A(6) ? A(0) : dy;
    case Activation::kSilu: {
      const A s = A(1) / (A(1) + std::exp(-v));
      return dy * s * (A(1) + v * (A(1) - s));
    }
  }
  return dy;
}

template <class A>
FC_HOST_DEVICE A apply_epilogue(const Epilogue& e, A sum, A residual) {
  const A slope = static_cast<A>(e.slope);
  return e.residual_after ? activate(e.activation, sum, slope) + residual
                          : activate(e.activation, sum + residual, slope);
}
#endif

}  // namespace fastconv
