// What the registrations of both backends need of tensors on the stable ABI: shapes, dtypes, memory
// formats, and new dense tensors.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "conv_problem.h"

namespace fastconv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

inline DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, op, ": dtype must be float32, float64, bfloat16 or float16");
  }
  return DType::kFloat32;
}

inline IntList sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return IntList(s.begin(), s.end());
}

inline IntList out_sizes(const ConvProblem& p) {
  IntList s{p.N, p.K};
  for (int axis = 3 - p.rank; axis < 3; ++axis) s.push_back(p.out[axis]);
  return s;
}

// Dense strides, N,C,spatial or N,spatial,C. Extents of 0 count as 1, as in PyTorch.
inline IntList dense_strides(const IntList& sizes, bool channels_last) {
  const int dim = static_cast<int>(sizes.size());
  IntList strides(dim);
  int64_t step = 1;
  const auto place = [&](int axis) {
    strides[axis] = step;
    step *= sizes[axis] > 1 ? sizes[axis] : 1;
  };
  if (channels_last) place(1);
  for (int axis = dim - 1; axis >= 2; --axis) place(axis);
  if (!channels_last) place(1);
  place(0);
  return strides;
}

inline Tensor empty_dense(const Tensor& like, const IntList& sizes, bool channels_last) {
  const IntList strides = dense_strides(sizes, channels_last);
  int32_t dtype = 0, device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

// dtype: aoti_torch_dtype_...()
inline Tensor empty_vector(const Tensor& like, int64_t n, int32_t dtype) {
  const int64_t one = 1;
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &n, &one, dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty_bytes(const Tensor& like, int64_t bytes) {
  return empty_vector(like, bytes, aoti_torch_dtype_uint8());
}

// t itself, or a copy of it with dense strides.
inline Tensor dense(const Tensor& t, bool channels_last) {
  const IntList sizes = sizes_of(t), want = dense_strides(sizes, channels_last);
  const auto have = t.strides();
  bool same = true;
  for (size_t i = 0; i < want.size(); ++i) same = same && (sizes[i] <= 1 || have[i] == want[i]);
  if (same) return t;
  Tensor copy = empty_dense(t, sizes, channels_last);
  torch::stable::copy_(copy, t);
  return copy;
}

inline bool is_channels_last(const Tensor& t) {
  // PyTorch's suggest_memory_format: strides match channels-last order and are not also those of
  // a contiguous tensor that merely has extents of 1.
  const int dim = static_cast<int>(t.dim());
  if (dim < 4) return false;
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  int64_t floor = 0;
  if (strides[1] == 0) return false;
  const auto step = [&](int axis) {
    if (sizes[axis] == 0 || strides[axis] < floor) return false;
    if (axis == 0 && floor == strides[1]) return false;
    floor = strides[axis] * (sizes[axis] > 1 ? sizes[axis] : 1);
    return true;
  };
  if (!step(1)) return false;
  for (int axis = dim - 1; axis >= 2; --axis)
    if (!step(axis)) return false;
  return step(0);
}

}  // namespace fastconv
