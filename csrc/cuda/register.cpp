// The CUDA key of the ops. The one shim that a CPU-only PyTorch does not export is declared weak,
// so that the same library loads there; a CUDA build of PyTorch binds it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "launch.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace fastconv::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void* current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "this PyTorch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

Tensor probe(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Int && x.is_contiguous(),
                  "probe: expected a contiguous int32 tensor");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  const int error =
      launch_probe(static_cast<const int32_t*>(x.const_data_ptr()),
                   static_cast<int32_t*>(y.mutable_data_ptr()), x.numel(), current_stream(x));
  STD_TORCH_CHECK(error == 0, "probe: ", error_text(error), " (built for " FC_BUILD_ARCHS ")");
  return y;
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) { m.impl("probe", TORCH_BOX(&fastconv::cuda::probe)); }
