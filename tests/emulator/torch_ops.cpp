// The convolution ops of the CUDA key, on CPU tensors: the package's own op layer and launchers
// over emulated kernels, as torch.ops.fastconv_emulated.conv_fprop / conv_dgrad / conv_wgrad. With
// it the whole way of a call, choice and trust included, is tested where there is no GPU.
#include <cstring>
#include <optional>
#include <string>

#include "cuda/conv_backend.h"
#include "guarded_buffers.h"
#include "scheduler.h"

namespace fastconv::cuda {

const char* built_architectures() { return "the emulation"; }

namespace {

// Stands for the tensor's device, as the CUDA registration's does.
struct EmulatedGpu {
  Device device{90, 132};
  void* stream = nullptr;

  explicit EmulatedGpu(const Tensor&) {}

  // The operands are copied into guarded memory and the result back: the emulation knows no other.
  int launch(const ConvInstance& instance, const ConvCall& call) const {
    const ConvProblem& p = call.problem;
    const size_t element = instance.dtype == DType::kFloat64   ? 8
                           : instance.dtype == DType::kFloat32 ? 4
                                                               : 2;
    struct Operand {
      void* tensor;
      size_t bytes;
      emu::Role role;
      std::optional<emu::GuardedBuffer> guarded;
    };
    const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * element; };
    const auto role = [&](Direction writer) {
      return instance.direction == writer ? emu::Role::kOutput : emu::Role::kInput;
    };
    Operand x{call.x, bytes(p.N * p.C * p.in_size()), role(Direction::kDgrad), {}};
    Operand w{
        call.w, bytes(p.K * p.channels_per_group() * p.filter_size()), role(Direction::kWgrad), {}};
    Operand y{call.y, bytes(p.N * p.K * p.out_size()), role(Direction::kFprop), {}};
    Operand bias{const_cast<void*>(call.bias), call.bias ? bytes(p.K) : 0, emu::Role::kInput, {}};
    const size_t scratch = static_cast<size_t>(instance.workspace(p, device));
    Operand workspace{nullptr, scratch, emu::Role::kOutput, {}};
    ConvCall guarded = call;
    const auto guard = [&](Operand& o, const char* name) -> void* {
      if (o.bytes == 0) return nullptr;
      o.guarded.emplace(name, o.role, o.bytes, 256, element, emu::Placement::kEndAligned);
      if (o.role == emu::Role::kInput) std::memcpy(o.guarded->data(), o.tensor, o.bytes);
      return o.guarded->data();
    };
    guarded.x = guard(x, "x");
    guarded.w = guard(w, "w");
    guarded.y = guard(y, "y");
    guarded.bias = guard(bias, "bias");
    guarded.workspace = guard(workspace, "workspace");
    emu::Statistics statistics;
    emu::begin_run({/*seed=*/1, /*workers=*/2});
    const int error = instance.launch(guarded);
    const std::string wrong = emu::end_run(&statistics);
    STD_TORCH_CHECK(wrong.empty(), instance.name, ": ", wrong);
    for (const Operand* o : {&x, &w, &y})
      if (o->role == emu::Role::kOutput) std::memcpy(o->tensor, o->guarded->data(), o->bytes);
    return error;
  }
};

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY(fastconv_emulated, m) { FC_DEFINE_CONV_OPS(m); }

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) {
  FC_IMPL_CONV_OPS(m, fastconv::cuda::ConvBackend<fastconv::cuda::EmulatedGpu>);
}
