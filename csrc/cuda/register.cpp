// The CUDA key of the ops. The one shim that a CPU-only PyTorch does not export is declared weak,
// so that the same library loads there; a CUDA build of PyTorch binds it.
#include <torch/csrc/stable/accelerator.h>

#include "conv_backend.h"
#include "fused_backend.h"
#include "inception_backend.h"
#include "launch.h"
#include "pool_backend.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace fastconv::cuda {

const char* built_architectures() { return FC_BUILD_ARCHS; }

namespace {

void* current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "this PyTorch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

Device described(int index) {
  Device device{};
  const int error = describe_device(index, &device);
  STD_TORCH_CHECK(error == 0, "CUDA device ", index, ": ", error_text(error));
  return device;
}

// The tensor's device, current as long as this lives, and PyTorch's current stream there.
struct Gpu {
  torch::stable::accelerator::DeviceGuard guard;
  Device device;
  void* stream;

  explicit Gpu(const Tensor& t)
      : guard(t.get_device_index()),
        device(described(t.get_device_index())),
        stream(current_stream(t.get_device_index())) {}

  int launch(const ConvInstance& instance, const ConvCall& call) const {
    return instance.launch(call);
  }
  int launch(NormPass pass, const NormCall& call) const { return launch_norm(pass, call, stream); }
  int launch(const PoolInstance& instance, const PoolCall& call) const {
    return instance.launch(call, device, stream);
  }
  int launch(const InceptionInstance& instance, const InceptionCall& call) const {
    return instance.launch(call, stream);
  }
};

Tensor probe(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Int && x.is_contiguous(),
                  "probe: expected a contiguous int32 tensor");
  const Gpu gpu(x);
  Tensor y = torch::stable::empty_like(x);
  const int error =
      launch_probe(static_cast<const int32_t*>(x.const_data_ptr()),
                   static_cast<int32_t*>(y.mutable_data_ptr()), x.numel(), gpu.stream);
  STD_TORCH_CHECK(error == 0, "probe: ", error_text(error), " (built for ", built_architectures(),
                  ")");
  return y;
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("probe", TORCH_BOX(&fastconv::cuda::probe));
  FC_IMPL_CONV_OPS(m, fastconv::cuda::ConvBackend<fastconv::cuda::Gpu>);
  FC_IMPL_POOL_OPS(m, fastconv::cuda::PoolBackend<fastconv::cuda::Gpu>);
  FC_IMPL_FUSED_OPS(m, fastconv::cuda::FusedBackend<fastconv::cuda::Gpu>);
  FC_IMPL_INCEPTION_OPS(m, fastconv::cuda::InceptionBackend<fastconv::cuda::Gpu>);
}
