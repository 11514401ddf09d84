// The ops of the CUDA key, on CPU tensors: the package's own op layer and launchers over emulated
// kernels, as torch.ops.fastconv_emulated.conv_fprop, max_pool_fprop, ... With it the whole way of
// a call, choice and trust included, is tested where there is no GPU.
#include <atomic>
#include <cstring>
#include <list>
#include <string>

#include "cuda/conv_backend.h"
#include "cuda/fused_backend.h"
#include "cuda/inception_backend.h"
#include "cuda/pool_backend.h"
#include "guarded_buffers.h"
#include "scheduler.h"

namespace fastconv::cuda {

const char* built_architectures() { return "the emulation"; }

namespace {

size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

std::atomic<int64_t> launched{0};

// Kernels that were launched in this process so far.
int64_t launches() { return launched; }

// Copies of tensors in guarded memory: the emulation knows no other.
class GuardedOperands {
 public:
  // Where the kernel finds the tensor; null stays null.
  // `filled`: what is written does not cover it.
  void* add(const char* name, const void* tensor, int64_t elements, size_t element, emu::Role role,
            bool filled = false) {
    const size_t bytes = static_cast<size_t>(elements) * element;
    if (tensor == nullptr || bytes == 0) return nullptr;
    Operand& o = operands_.emplace_back(name, const_cast<void*>(tensor), bytes, element, role);
    if (role == emu::Role::kInput || filled) std::memcpy(o.guarded.data(), tensor, bytes);
    return o.guarded.data();
  }
  void* workspace(size_t bytes, size_t element) {
    if (bytes == 0) return nullptr;
    return operands_.emplace_back("workspace", nullptr, bytes, element, emu::Role::kOutput)
        .guarded.data();
  }
  // Runs the launch and copies back what kernels write.
  template <class Launch>
  int run(const char* name, const Launch& launch) {
    emu::Statistics statistics;
    emu::begin_run({/*seed=*/1, /*workers=*/2});
    const int error = launch();
    const std::string wrong = emu::end_run(&statistics);
    launched += static_cast<int64_t>(statistics.launches);
    STD_TORCH_CHECK(wrong.empty(), name, ": ", wrong);
    for (Operand& o : operands_)
      if (o.role == emu::Role::kOutput && o.tensor != nullptr)
        std::memcpy(o.tensor, o.guarded.data(), o.guarded.bytes());
    return error;
  }

 private:
  struct Operand {
    void* tensor;
    emu::Role role;
    emu::GuardedBuffer guarded;
    Operand(const char* name, void* tensor, size_t bytes, size_t element, emu::Role role)
        : tensor(tensor),
          role(role),
          // As an allocation, or as far off one as the tensor's own storage offset.
          guarded(name, role, bytes, aligned(tensor) ? 256 : element, element,
                  aligned(tensor) ? emu::Placement::kEndAligned : emu::Placement::kOffset) {}
    static bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
  };
  std::list<Operand> operands_;
};

// Stands for the tensor's device, as the CUDA registration's does.
struct EmulatedGpu {
  Device device{90, 132};
  void* stream = nullptr;

  explicit EmulatedGpu(const Tensor&) {}

  int launch(const ConvInstance& instance, const ConvCall& call) const {
    const ConvProblem& p = call.problem;
    const size_t element = element_bytes(instance.dtype);
    const auto role = [&](Direction writer) {
      return instance.direction == writer ? emu::Role::kOutput : emu::Role::kInput;
    };
    GuardedOperands operands;
    ConvCall guarded = call;
    guarded.x =
        operands.add("x", call.x, p.N * p.C * p.in_size(), element, role(Direction::kDgrad));
    guarded.w = operands.add("w", call.w, p.K * p.channels_per_group() * p.filter_size(), element,
                             role(Direction::kWgrad));
    // Of a slice, what lies between its first and its last element.
    const int64_t run = instance.layout == Layout::kNHWC ? p.K : p.K * p.out_size();
    const int64_t runs = p.N * p.K * p.out_size() / run;
    const int64_t skip = (call.y_channels() - p.K) * (run / p.K);
    guarded.y = operands.add("y", call.y, runs * run + (runs - 1) * skip, element,
                             role(Direction::kFprop), skip > 0);
    guarded.epilogue.residual = operands.add("residual", call.epilogue.residual,
                                             p.N * p.K * p.out_size(), element, emu::Role::kInput);
    guarded.bias = operands.add("bias", call.bias, p.K, element, emu::Role::kInput);
    guarded.mean = operands.add("mean", call.mean, p.K, 4, emu::Role::kOutput);
    guarded.m2 = operands.add("m2", call.m2, p.K, 4, emu::Role::kOutput);
    const int64_t scratch =
        call.mean != nullptr ? instance.stats_workspace(p, device) : instance.workspace(p, device);
    guarded.workspace = operands.workspace(static_cast<size_t>(scratch),
                                           call.mean != nullptr ? size_t{4} : element);
    return operands.run(instance.name, [&] { return instance.launch(guarded); });
  }

  int launch(NormPass pass, const NormCall& call) const {
    const size_t element = element_bytes(call.dtype);
    const size_t statistic = call.dtype == DType::kFloat64 ? 8 : 4;
    const int64_t elements = call.N * call.K * call.size;
    constexpr emu::Role kRead = emu::Role::kInput, kWritten = emu::Role::kOutput;
    GuardedOperands operands;
    NormCall guarded = call;
    const auto tensor = [&](const char* name, const void* p, emu::Role role) {
      return operands.add(name, p, elements, element, role);
    };
    const auto channel = [&](const char* name, const void* p, emu::Role role) {
      return operands.add(name, p, call.K, statistic, role);
    };
    const int64_t run = call.channels_last ? call.K : call.K * call.size;
    const int64_t channels = call.epilogue.y_channels > 0 ? call.epilogue.y_channels : call.K;
    const int64_t skip = (channels - call.K) * (run / call.K), runs = elements / run;
    const bool in_place = call.z == call.y;
    guarded.z = operands.add("z", call.z, runs * run + (runs - 1) * skip, element, kWritten,
                             skip > 0 || in_place);
    guarded.y = in_place ? guarded.z : tensor("y", call.y, kRead);
    guarded.dz = tensor("dz", call.dz, kRead);
    guarded.epilogue.residual = tensor("residual", call.epilogue.residual, kRead);
    guarded.mean = channel("mean", call.mean, kRead);
    guarded.rstd = channel("rstd", call.rstd, kRead);
    guarded.weight = channel("weight", call.weight, kRead);
    guarded.bias = channel("bias", call.bias, kRead);
    guarded.sum_g = channel("sum_g", call.sum_g, kRead);
    guarded.sum_gy = channel("sum_gy", call.sum_gy, kRead);
    guarded.dy = tensor("dy", call.dy, kWritten);
    guarded.dresidual = tensor("dresidual", call.dresidual, kWritten);
    guarded.out_mean = channel("out_mean", call.out_mean, kWritten);
    guarded.out_m2 = channel("out_m2", call.out_m2, kWritten);
    guarded.out_sum_g = channel("out_sum_g", call.out_sum_g, kWritten);
    guarded.out_sum_gy = channel("out_sum_gy", call.out_sum_gy, kWritten);
    guarded.workspace =
        operands.workspace(static_cast<size_t>(norm_workspace(pass, call)), statistic);
    return operands.run("norm", [&] { return launch_norm(pass, guarded, nullptr); });
  }

  int launch(const InceptionInstance& instance, const InceptionCall& call) const {
    const size_t element = element_bytes(instance.dtype);
    const int64_t pixels = call.pixels(), joined = call.K1 + call.R3 + call.R5;
    constexpr emu::Role kRead = emu::Role::kInput, kWritten = emu::Role::kOutput;
    GuardedOperands operands;
    InceptionCall guarded = call;
    const auto read = [&](const char* name, const void*& p, int64_t elements) {
      p = operands.add(name, p, elements, element, kRead);
    };
    read("x", guarded.x, pixels * call.C);
    read("joined", guarded.joined, joined * call.C);
    read("joined_bias", guarded.joined_bias, joined);
    read("w3", guarded.w3, call.K3 * call.R3 * call.extent3 * call.extent3);
    read("b3", guarded.b3, call.K3);
    read("w5", guarded.w5, call.K5 * call.R5 * call.extent5 * call.extent5);
    read("b5", guarded.b5, call.K5);
    read("wp", guarded.wp, call.KP * call.C);
    read("bp", guarded.bp, call.KP);
    guarded.y = operands.add("y", call.y, pixels * call.outputs(), element, kWritten);
    guarded.reductions = operands.add("reductions", call.reductions, pixels * (call.R3 + call.R5),
                                      element, kWritten);
    return operands.run(instance.name, [&] { return instance.launch(guarded, nullptr); });
  }

  int launch(const PoolInstance& instance, const PoolCall& call) const {
    const PoolProblem& p = call.p;
    const size_t element = element_bytes(instance.dtype);
    const int64_t ins = p.N * p.C * p.in_size(), outs = p.N * p.C * p.out_size();
    const PoolPass pass = instance.pass;
    const bool to_input = pass == PoolPass::kBackward || pass == PoolPass::kUnpool;
    constexpr emu::Role kRead = emu::Role::kInput, kWritten = emu::Role::kOutput;
    GuardedOperands operands;
    PoolCall guarded = call;
    guarded.x = operands.add("x", call.x, pass == PoolPass::kUnpool ? outs : ins, element, kRead);
    guarded.y = operands.add("y", call.y, outs, element, kRead);
    guarded.dy = operands.add("dy", call.dy, outs, element, kRead);
    guarded.result = operands.add("result", call.result, to_input ? ins : outs, element, kWritten);
    guarded.index =
        operands.add("index", call.index, outs, call.index_kind == PoolIndex::kLong ? 8 : 1,
                     pass == PoolPass::kForward ? kWritten : kRead);
    guarded.seed = static_cast<const uint64_t*>(operands.add("seed", call.seed, 1, 8, kRead));
    return operands.run(instance.name, [&] { return instance.launch(guarded, device, stream); });
  }
};

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY(fastconv_emulated, m) {
  FC_DEFINE_CONV_OPS(m);
  FC_DEFINE_POOL_OPS(m);
  FC_DEFINE_FUSED_OPS(m);
  FC_DEFINE_INCEPTION_OPS(m);
  m.def("launches() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&fastconv::cuda::launches));
}

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) {
  FC_IMPL_CONV_OPS(m, fastconv::cuda::ConvBackend<fastconv::cuda::EmulatedGpu>);
  FC_IMPL_POOL_OPS(m, fastconv::cuda::PoolBackend<fastconv::cuda::EmulatedGpu>);
  FC_IMPL_FUSED_OPS(m, fastconv::cuda::FusedBackend<fastconv::cuda::EmulatedGpu>);
  FC_IMPL_INCEPTION_OPS(m, fastconv::cuda::InceptionBackend<fastconv::cuda::EmulatedGpu>);
}
