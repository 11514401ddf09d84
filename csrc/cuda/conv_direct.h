// What the launchers of both direct algorithms (conv_direct*.cu) share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "conv_algorithm.h"
#include "detail/scalar.cuh"
#include "device_rates.h"

namespace fastconv::cuda {

template <DType dtype>
struct DTypeTraits;
template <>
struct DTypeTraits<DType::kFloat32> {
  using scalar_t = float;
};
template <>
struct DTypeTraits<DType::kFloat64> {
  using scalar_t = double;
};
template <>
struct DTypeTraits<DType::kBFloat16> {
  using scalar_t = __nv_bfloat16;
};
template <>
struct DTypeTraits<DType::kFloat16> {
  using scalar_t = __half;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x, w and y once each.
inline double tensor_bytes(const ConvProblem& p, int64_t scalar_bytes) {
  const double x = double(p.N) * double(p.C) * double(p.in_size());
  const double w = double(p.K) * double(p.channels_per_group()) * double(p.filter_size());
  const double y = double(p.N) * double(p.K) * double(p.out_size());
  return (x + w + y) * double(scalar_bytes);
}

// Tiles of the instances of `direct`; the kernels' headers say what they are.
enum class GatherTileId : int { kK32 = 0, kK64 = 1, kK4 = 2 };

// fprop and dgrad of `direct` (conv_direct_gather.cu).
template <DType dtype, Layout layout, GatherTileId tile, Direction direction>
struct GatherInstance {
  static std::string applicable(const ConvProblem&);
  static int64_t workspace(const ConvProblem&, const Device&) { return 0; }
  static double cost(const ConvProblem&, const Device&);
  static int launch(const ConvCall&);
};

template <class acc>
double fma_rate(const DeviceRates& rates) {
  return sizeof(acc) == 8 ? rates.fp64_flops : rates.fma_flops;
}

}  // namespace fastconv::cuda
