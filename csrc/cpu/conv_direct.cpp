// Placeholder loops from the definition; replaced by the vectorised kernels.
#include "conv_algorithm.h"
#include "parallel.h"
#define FC_ISA plain
#define FC_VEC_BYTES 16
#include "simd.h"

namespace fastconv::cpu {
namespace {
using namespace plain;

std::string applicable(const ConvProblem&, DType, Direction) { return ""; }
int64_t workspace(const ConvProblem&, DType, Direction, int) { return 0; }
double cost(const ConvProblem& p, DType, Direction, int) { return p.macs() * 2e-9; }

template <class T> void run_typed(const ConvCall& c) {
  const ConvProblem& p = c.problem;
  const int64_t Cg = p.channels_per_group(), Kg = p.filters_per_group();
  const auto at = [](const TensorRef& t, int64_t a, int64_t b, int64_t d, int64_t h, int64_t w) -> T& {
    return static_cast<T*>(t.data)[a * t.stride[0] + b * t.stride[1] + d * t.stride[2] + h * t.stride[3] + w * t.stride[4]];
  };
  using A = acc_t<T>;
  if (c.direction == Direction::kFprop) {
    for (int64_t n = 0; n < p.N; ++n) for (int64_t k = 0; k < p.K; ++k)
    for (int64_t o = 0; o < p.out[0]; ++o) for (int64_t y = 0; y < p.out[1]; ++y) for (int64_t q = 0; q < p.out[2]; ++q) {
      A acc = c.bias ? to_acc(static_cast<const T*>(c.bias)[k]) : A(0);
      for (int64_t ch = 0; ch < Cg; ++ch) for (int64_t t = 0; t < p.filter[0]; ++t) for (int64_t r = 0; r < p.filter[1]; ++r) for (int64_t s = 0; s < p.filter[2]; ++s) {
        const int64_t d = o * p.stride[0] - p.padding[0] + t * p.dilation[0], h = y * p.stride[1] - p.padding[1] + r * p.dilation[1], w = q * p.stride[2] - p.padding[2] + s * p.dilation[2];
        if (d < 0 || h < 0 || w < 0 || d >= p.in[0] || h >= p.in[1] || w >= p.in[2]) continue;
        acc += to_acc(at(c.x, n, k / Kg * Cg + ch, d, h, w)) * to_acc(at(c.w, k, ch, t, r, s));
      }
      from_acc(acc, &at(c.y, n, k, o, y, q));
    }
    return;
  }
  // gradients: gather over every (output, tap) that touches an element
  if (c.direction == Direction::kDgrad) {
    for (int64_t n = 0; n < p.N; ++n) for (int64_t ch = 0; ch < p.C; ++ch)
    for (int64_t d = 0; d < p.in[0]; ++d) for (int64_t h = 0; h < p.in[1]; ++h) for (int64_t w = 0; w < p.in[2]; ++w) {
      A acc = 0;
      for (int64_t t = 0; t < p.filter[0]; ++t) for (int64_t r = 0; r < p.filter[1]; ++r) for (int64_t s = 0; s < p.filter[2]; ++s) {
        int64_t o = d + p.padding[0] - t * p.dilation[0], y = h + p.padding[1] - r * p.dilation[1], q = w + p.padding[2] - s * p.dilation[2];
        if (o % p.stride[0] || y % p.stride[1] || q % p.stride[2]) continue;
        o /= p.stride[0]; y /= p.stride[1]; q /= p.stride[2];
        if (o < 0 || y < 0 || q < 0 || o >= p.out[0] || y >= p.out[1] || q >= p.out[2]) continue;
        const int64_t g = ch / Cg;
        for (int64_t k = g * Kg; k < (g + 1) * Kg; ++k) acc += to_acc(at(c.y, n, k, o, y, q)) * to_acc(at(c.w, k, ch % Cg, t, r, s));
      }
      from_acc(acc, &at(c.x, n, ch, d, h, w));
    }
    return;
  }
  for (int64_t k = 0; k < p.K; ++k) for (int64_t ch = 0; ch < Cg; ++ch)
  for (int64_t t = 0; t < p.filter[0]; ++t) for (int64_t r = 0; r < p.filter[1]; ++r) for (int64_t s = 0; s < p.filter[2]; ++s) {
    A acc = 0;
    for (int64_t n = 0; n < p.N; ++n) for (int64_t o = 0; o < p.out[0]; ++o) for (int64_t y = 0; y < p.out[1]; ++y) for (int64_t q = 0; q < p.out[2]; ++q) {
      const int64_t d = o * p.stride[0] - p.padding[0] + t * p.dilation[0], h = y * p.stride[1] - p.padding[1] + r * p.dilation[1], w = q * p.stride[2] - p.padding[2] + s * p.dilation[2];
      if (d < 0 || h < 0 || w < 0 || d >= p.in[0] || h >= p.in[1] || w >= p.in[2]) continue;
      acc += to_acc(at(c.x, n, k / Kg * Cg + ch, d, h, w)) * to_acc(at(c.y, n, k, o, y, q));
    }
    from_acc(acc, &at(c.w, k, ch, t, r, s));
  }
}

void run(const ConvCall& c) {
  switch (c.dtype) {
    case DType::kFloat32: return run_typed<float>(c);
    case DType::kFloat64: return run_typed<double>(c);
    case DType::kBFloat16: return run_typed<bf16>(c);
    case DType::kFloat16: return run_typed<f16>(c);
  }
}
}  // namespace

const ConvAlgorithm conv_direct{"direct", applicable, workspace, cost, run};
}  // namespace fastconv::cpu
