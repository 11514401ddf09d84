// The CPU key of the convolution ops: tensors in, a ConvCall out. Texts here are a backstop; the
// Python layer has validated with PyTorch's own.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "conv_algorithm.h"
#include "parallel.h"

namespace fastconv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, op, ": dtype must be float32, float64, bfloat16 or float16");
  }
  return DType::kFloat32;
}

IntList sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return IntList(s.begin(), s.end());
}

IntList out_sizes(const ConvProblem& p) {
  IntList s{p.N, p.K};
  for (int axis = 3 - p.rank; axis < 3; ++axis) s.push_back(p.out[axis]);
  return s;
}

TensorRef ref(const Tensor& t, int rank) {
  TensorRef r{};
  r.data = const_cast<void*>(t.const_data_ptr());
  const auto strides = t.strides();
  r.stride[0] = strides[0];
  r.stride[1] = strides[1];
  for (int i = 0; i < rank; ++i) r.stride[5 - rank + i] = strides[2 + i];
  return r;
}

// Dense strides, N,C,spatial or N,spatial,C. Extents of 0 count as 1, as in PyTorch.
IntList dense_strides(const IntList& sizes, bool channels_last) {
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

Tensor empty_dense(const Tensor& like, const IntList& sizes, bool channels_last) {
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

Tensor empty_bytes(const Tensor& like, int64_t bytes) {
  const int64_t one = 1;
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      1, &bytes, &one, aoti_torch_dtype_uint8(), device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

bool is_channels_last(const Tensor& t) {
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

void run(const char* op, const Tensor& like, ConvCall& call, const std::string& algo) {
  const ConvAlgorithm* algorithm = find_conv_algorithm(algo.c_str());
  STD_TORCH_CHECK(algorithm != nullptr, op, ": unknown CPU algorithm '", algo, "'");
  const std::string reason = algorithm->applicable(call.problem, call.dtype, call.direction);
  STD_TORCH_CHECK(reason.empty(), op, ": algorithm '", algo, "' does not apply: ", reason);
  call.threads = num_threads();
  const int64_t bytes =
      algorithm->workspace(call.problem, call.dtype, call.direction, call.threads);
  std::optional<Tensor> workspace;
  if (bytes > 0) {
    workspace = empty_bytes(like, bytes);
    call.workspace = workspace->mutable_data_ptr();
  }
  algorithm->run(call);
}

Tensor conv_fprop(const Tensor& x, const Tensor& w, std::optional<Tensor> bias, IntList stride,
                  IntList padding, IntList dilation, int64_t groups, std::string algo) {
  constexpr const char* op = "conv_fprop";
  ConvCall call{};
  call.problem = make_conv_problem(sizes_of(x), sizes_of(w), stride, padding, dilation, groups);
  const ConvProblem& p = call.problem;
  call.dtype = dtype_of(x, op);
  call.direction = Direction::kFprop;
  STD_TORCH_CHECK(w.scalar_type() == x.scalar_type(), op, ": input and weight differ in dtype");
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.K, op, ": bias must have K=", p.K,
                    " elements");
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type(), op, ": input and bias differ in dtype");
    dense_bias = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
    call.bias = dense_bias->const_data_ptr();
  }
  Tensor y = empty_dense(x, out_sizes(p), is_channels_last(x) || is_channels_last(w));
  if (y.numel() == 0) return y;
  if (p.C == 0) {
    torch::stable::zero_(y);  // an empty sum; PyTorch refuses C=0 with K>0 before it gets here
    return y;
  }
  call.x = ref(x, p.rank);
  call.w = ref(w, p.rank);
  call.y = ref(y, p.rank);
  run(op, x, call, algo);
  return y;
}

Tensor conv_dgrad(const Tensor& dy, const Tensor& w, IntList input_size, IntList stride,
                  IntList padding, IntList dilation, int64_t groups, bool channels_last,
                  std::string algo) {
  constexpr const char* op = "conv_dgrad";
  ConvCall call{};
  call.problem = make_conv_problem(input_size, sizes_of(w), stride, padding, dilation, groups);
  const ConvProblem& p = call.problem;
  call.dtype = dtype_of(dy, op);
  call.direction = Direction::kDgrad;
  STD_TORCH_CHECK(w.scalar_type() == dy.scalar_type(), op, ": dy and weight differ in dtype");
  STD_TORCH_CHECK(sizes_of(dy) == out_sizes(p), op, ": dy does not have the output's shape");
  Tensor dx = empty_dense(dy, input_size, channels_last && p.rank > 1);
  if (dx.numel() == 0) return dx;
  if (dy.numel() == 0) {
    torch::stable::zero_(dx);
    return dx;
  }
  call.x = ref(dx, p.rank);
  call.w = ref(w, p.rank);
  call.y = ref(dy, p.rank);
  run(op, dy, call, algo);
  return dx;
}

Tensor conv_wgrad(const Tensor& dy, const Tensor& x, IntList weight_size, IntList stride,
                  IntList padding, IntList dilation, int64_t groups, bool channels_last,
                  std::string algo) {
  constexpr const char* op = "conv_wgrad";
  ConvCall call{};
  call.problem = make_conv_problem(sizes_of(x), weight_size, stride, padding, dilation, groups);
  const ConvProblem& p = call.problem;
  call.dtype = dtype_of(x, op);
  call.direction = Direction::kWgrad;
  STD_TORCH_CHECK(x.scalar_type() == dy.scalar_type(), op, ": dy and input differ in dtype");
  STD_TORCH_CHECK(sizes_of(dy) == out_sizes(p), op, ": dy does not have the output's shape");
  Tensor dw = empty_dense(dy, weight_size, channels_last && p.rank > 1);
  if (dw.numel() == 0) return dw;
  if (dy.numel() == 0 || x.numel() == 0) {
    torch::stable::zero_(dw);
    return dw;
  }
  call.x = ref(x, p.rank);
  call.w = ref(dw, p.rank);
  call.y = ref(dy, p.rank);
  run(op, dy, call, algo);
  return dw;
}

}  // namespace
}  // namespace fastconv::cpu

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv_fprop", TORCH_BOX(&fastconv::cpu::conv_fprop));
  m.impl("conv_dgrad", TORCH_BOX(&fastconv::cpu::conv_dgrad));
  m.impl("conv_wgrad", TORCH_BOX(&fastconv::cpu::conv_wgrad));
}
