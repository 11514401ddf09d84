// The convolution ops of the CUDA key, on CPU tensors: the package's own op layer and launchers over
// emulated kernels, as torch.ops.fastconv_emulated.conv_fprop / conv_dgrad / conv_wgrad. With it the
// whole way of a call, choice and trust included, is tested where there is no GPU.
#include <string>

#include "cuda/conv_backend.h"
#include "scheduler.h"

namespace fastconv::cuda {

const char* built_architectures() { return "the emulation"; }

namespace {

// Stands for the tensor's device, as the CUDA registration's does.
struct EmulatedGpu {
  Device device{90, 132};
  void* stream = nullptr;

  explicit EmulatedGpu(const Tensor&) {}

  int launch(const ConvInstance& instance, const ConvCall& call) const {
    emu::Statistics statistics;
    emu::begin_run({/*seed=*/1, /*workers=*/2});
    const int error = instance.launch(call);
    const std::string wrong = emu::end_run(&statistics);
    STD_TORCH_CHECK(wrong.empty(), instance.name, ": ", wrong);
    return error;
  }
};

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY(fastconv_emulated, m) {
  m.def(
      "conv_fprop(Tensor x, Tensor w, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str algo) -> Tensor");
  m.def(
      "conv_dgrad(Tensor dy, Tensor w, SymInt[] input_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, bool channels_last, str algo) -> Tensor");
  m.def(
      "conv_wgrad(Tensor dy, Tensor x, SymInt[] weight_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, bool channels_last, str algo) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) {
  FC_IMPL_CONV_OPS(m, fastconv::cuda::ConvBackend<fastconv::cuda::EmulatedGpu>);
}
