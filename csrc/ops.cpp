// Op schemas, in one place. Kernels are registered beside their backend (cpu/register.cpp).
// Lists have one entry per spatial axis; input_size and weight_size are the full shapes.
// `algo` is the name of a registry entry of the tensor's backend; `auto` and `aten` are resolved
// before the op is reached (fastconv/select.py), so that no PyTorch convolution runs in here.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastconv, m) {
  m.def(
      "conv_fprop(Tensor x, Tensor w, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str algo) -> Tensor");
  m.def(
      "conv_dgrad(Tensor dy, Tensor w, SymInt[] input_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, bool channels_last, str algo) -> Tensor");
  m.def(
      "conv_wgrad(Tensor dy, Tensor x, SymInt[] weight_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, bool channels_last, str algo) -> Tensor");
  // Runs the smallest CUDA kernel of this build: x + 1 on int32.
  m.def("probe(Tensor x) -> Tensor");
}
