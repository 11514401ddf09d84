// The C++ type that tensors of a dtype hold, for choosing a kernel's template argument.
#pragma once
#include "../common/conv_problem.h"
#include "detail/platform.cuh"

namespace fastconv::cuda {

template <DType dtype>
struct ScalarOf;
template <>
struct ScalarOf<DType::kFloat32> {
  using type = float;
};
template <>
struct ScalarOf<DType::kFloat64> {
  using type = double;
};
template <>
struct ScalarOf<DType::kBFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct ScalarOf<DType::kFloat16> {
  using type = __half;
};
template <DType dtype>
using scalar_of = typename ScalarOf<dtype>::type;

}  // namespace fastconv::cuda
