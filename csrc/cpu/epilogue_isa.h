// The activations of common/epilogue.h on vectors of acc_t, and what they do to a gradient: for the
// passes of normalisation; and the epilogues of the convolutions, on what they have summed and
// still hold in a cache.
#pragma once
#include "epilogue.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {

// exp(x) for the logistic function: as exact as the type (1 unit in the last place) where x > -86
// (fp64: -700), above the largest number infinity, NaN for NaN; below, where 1 + exp(x) is 1, it
// keeps the value of the bound and so never meets a subnormal.
//   exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by its series
template <class A>
struct ExpParts;
template <>
struct ExpParts<float> {
  static constexpr float low = -86.0f, high = 89.0f, round = 0x1.8p23f;
  static constexpr float ln2_high = 355.0f / 512, ln2_low = -0.00021219444005469057f;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
};
template <>
struct ExpParts<double> {
  static constexpr double low = -700.0, high = 710.0, round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
};
constexpr double kInverseFactorial[] = {1.0,
                                        1.0,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800};

template <class A>
FC_INLINE typename Simd<A>::vec vexp(typename Simd<A>::vec x) {
  using vec = typename Simd<A>::vec;
  using mask = typename Simd<A>::mask;
  using P = ExpParts<A>;
  const vec low = vsplat(P::low), high = vsplat(P::high), magic = vsplat(P::round);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const vec shifted = x * vsplat(A(1.44269504088896340736)) + magic;  // n in the lowest bits
  const vec n = shifted - magic;
  const vec r = (x - n * vsplat(P::ln2_high)) - n * vsplat(P::ln2_low);
  vec sum = vsplat(A(kInverseFactorial[P::terms]));
#pragma GCC unroll 16
  for (int i = P::terms - 1; i >= 0; --i) sum = sum * r + vsplat(A(kInverseFactorial[i]));
  // 2^(n-1): 2^n itself is no number at the upper end, where twice the rest still may be.
  const mask power = ((mask)shifted - (mask)magic + (P::bias - 1)) << P::mantissa;
  return (sum + sum) * (vec)power;
}

// In place on a few vectors: the choice is made once for all of them, so that it costs nothing and
// every loop exists once instead of once per activation.
template <class A, int kCount>
FC_INLINE void vactivate(Activation activation, typename Simd<A>::vec (&v)[kCount],
                         typename Simd<A>::vec slope) {
  using vec = typename Simd<A>::vec;
  const vec zero{}, one = vsplat(A(1)), six = vsplat(A(6));
#define FC_EACH _Pragma("GCC unroll 4") for (int u = 0; u < kCount; ++u)
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: FC_EACH v[u] = vkeep<A>(v[u], ~(v[u] < zero)); return;
    case Activation::kLeakyRelu: FC_EACH v[u] = v[u] > zero ? v[u] : v[u] * slope; return;
    case Activation::kRelu6:
      FC_EACH v[u] = vkeep<A>(v[u] > six ? six : v[u], ~(v[u] < zero));
      return;
    case Activation::kSilu: FC_EACH v[u] = v[u] / (one + vexp<A>(-v[u])); return;
  }
#undef FC_EACH
}

// dy * act'(v); at the corners PyTorch's choice.
template <class A>
FC_INLINE typename Simd<A>::vec vactivate_backward(Activation activation, typename Simd<A>::vec dy,
                                                   typename Simd<A>::vec v,
                                                   typename Simd<A>::vec slope) {
  using vec = typename Simd<A>::vec;
  const vec zero{}, one = vsplat(A(1));
  switch (activation) {
    case Activation::kNone: return dy;
    case Activation::kRelu: return vkeep<A>(dy, ~(v <= zero));
    case Activation::kLeakyRelu: return v > zero ? dy : dy * slope;
    case Activation::kRelu6: return vkeep<A>(dy, ~((v <= zero) | (v >= vsplat(A(6)))));
    case Activation::kSilu: {
      const vec s = one / (one + vexp<A>(-v));
      return dy * s * (one + v * (one - s));
    }
  }
  return dy;
}

// v[i*ld + j] = the epilogue of it, i < rows, j < n, with residual[i*residual_ld + j] where that is
// not null. In norm_isa.cpp, so that it is compiled once for all convolutions.
void epilogue_tile(const Epilogue& e, float* v, int64_t ld, const float* residual,
                   int64_t residual_ld, int64_t rows, int64_t n);
void epilogue_tile(const Epilogue& e, double* v, int64_t ld, const double* residual,
                   int64_t residual_ld, int64_t rows, int64_t n);

// Some channels and pixels of y.
struct MomentsPiece {
  const void* y;  // the first of them
  int64_t channels, channel_step;
  int64_t extent[3], step[3];  // pixels
};
// Adds what the piece holds to channels [channel, ..) of a block, which `before` pixels are in; in
// moments_isa.cpp.
template <class T>
void add_moments(const MomentsPiece& piece, const Moments& to, int64_t block, int64_t channel,
                 int64_t before);

namespace {

// A convolution's epilogue, for storage T. Sums that are still in acc_t: early() on all of them,
// then store(); sums that were stored where they belong: in_place().
template <class T>
class Finish {
 public:
  using A = acc_t<T>;
  // y: where the tensor begins.
  FC_INLINE Finish(const CpuEpilogue& e, const void* y)
      : plain(e.plain()), e_(e), y_(static_cast<const T*>(y)) {}

  const bool plain;

  // v[i*ld + j], i < rows, j < n: what needs no residual is done at once, whatever is stored of it.
  FC_INLINE void early(A* v, int64_t ld, int64_t rows, int64_t n) const {
    if (!plain && !e_.residual) epilogue_tile(e_, v, ld, nullptr, 0, rows, n);
  }
  // Stores sum[0, n) at y[0, n * stride); may overwrite `sum`.
  FC_INLINE void store(A* sum, T* y, int64_t stride, int64_t n) const {
    if (e_.residual) add_residual(sum, y, stride, n);
    store_run(sum, y, stride, n);
  }
  FC_INLINE void in_place(A* y, int64_t ld, int64_t rows, int64_t n) const {
    static_assert(sizeof(A) == sizeof(T), "y holds what was summed");
    const T* at = reinterpret_cast<const T*>(y);
    epilogue_tile(e_, y, ld, reinterpret_cast<const A*>(residual(at)), residual_step(at, ld), rows,
                  n);
  }

 private:
  FC_INLINE const T* residual(const T* y) const {
    return e_.residual ? static_cast<const T*>(e_.residual) + e_.residual_at(y - y_) : nullptr;
  }
  // What a step in y is there. Steps that a run or a tile repeats stay within an image, or go from
  // pixel to pixel, or from image to image: each of them is one step there, too.
  FC_INLINE int64_t residual_step(const T* y, int64_t step) const {
    return e_.residual_at(y - y_ + step) - e_.residual_at(y - y_);
  }
  __attribute__((noinline)) void add_residual(A* sum, const T* y, int64_t stride, int64_t n) const {
    constexpr int64_t kRun = 64;
    A buffer[kRun];
    const T* from = residual(y);
    const int64_t step = residual_step(y, stride);
    for (int64_t i = 0; i < n; i += kRun) {
      const int64_t count = kRun < n - i ? kRun : n - i;
      load_run(from + i * step, step, buffer, count);
      epilogue_tile(e_, sum + i, 0, buffer, 0, 1, count);
    }
  }

  const CpuEpilogue e_;
  const T* const y_;
};

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
