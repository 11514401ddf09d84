// Defines the ops. Kernels are registered beside their backend (cpu/register.cpp).
// `algo` is the name of a registry entry of the tensor's backend; `auto` and `aten` are resolved
// before the op is reached (fastconv/select.py), so that no PyTorch convolution runs in here.
#include "common/conv_ops.h"
#include "common/fused_ops.h"
#include "common/inception_ops.h"
#include "common/pool_ops.h"

STABLE_TORCH_LIBRARY(fastconv, m) {
  FC_DEFINE_CONV_OPS(m);
  FC_DEFINE_FUSED_OPS(m);
  FC_DEFINE_INCEPTION_OPS(m);
  FC_DEFINE_POOL_OPS(m);
  // Runs the smallest CUDA kernel of this build: x + 1 on int32.
  m.def("probe(Tensor x) -> Tensor");
}
