// The CPU key of the convolution ops and of the fused ones.
#include "../common/conv_ops.h"
#include "../common/fused_ops.h"
#include "conv_algorithm.h"
#include "norm.h"
#include "parallel.h"

namespace fastconv::cpu {
namespace {

TensorRef ref(const Tensor& t, int rank) {
  TensorRef r{};
  r.data = const_cast<void*>(t.const_data_ptr());
  const auto strides = t.strides();
  r.stride[0] = strides[0];
  r.stride[1] = strides[1];
  for (int i = 0; i < rank; ++i) r.stride[5 - rank + i] = strides[2 + i];
  return r;
}

struct Backend {
  static void run(const char* op, ConvOperands& o, const std::string& algo) {
    const ConvAlgorithm* algorithm = find_conv_algorithm(algo.c_str());
    STD_TORCH_CHECK(algorithm != nullptr, op, ": unknown CPU algorithm '", algo, "'");
    const std::string reason = algorithm->applicable(o.problem, o.dtype, o.direction);
    STD_TORCH_CHECK(reason.empty(), op, ": algorithm '", algo, "' does not apply: ", reason);
    const int rank = o.problem.rank, threads = num_threads();
    ConvCall call{o.problem,      o.dtype, o.direction, ref(o.x, rank), ref(o.w, rank),
                  ref(o.y, rank), nullptr, nullptr,     threads,        {}};
    // A slice's residual lies in other strides than the slice.
    const bool apart = o.epilogue.residual != nullptr && o.epilogue.y_channels > 0;
    if (!apart) call.epilogue = o.epilogue;
    if (o.bias.has_value()) call.bias = o.bias->const_data_ptr();
    const int64_t bytes = algorithm->workspace(o.problem, o.dtype, o.direction, threads);
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace = empty_bytes(o.x, bytes);
      call.workspace = workspace->mutable_data_ptr();
    }
    algorithm->run(call);
    if (!apart) return;
    const ConvProblem& p = o.problem;
    epilogue_in_place(o.dtype, p.N, p.K, p.out_size(), o.channels_last, call.y.data, o.epilogue,
                      threads);
  }

  static bool run_stats(const char* op, ConvOperands& o, const std::string& algo, Tensor&,
                        Tensor&) {
    run(op, o, algo);
    return false;
  }

  static void norm(const char*, NormPass pass, NormCall& call, const Tensor& on) {
    call.threads = num_threads();
    const int64_t bytes = norm_workspace(pass, call);
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace = empty_bytes(on, bytes);
      call.workspace = workspace->mutable_data_ptr();
    }
    norm_run(pass, call);
  }
};

}  // namespace
}  // namespace fastconv::cpu

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  FC_IMPL_CONV_OPS(m, fastconv::cpu::Backend);
  FC_IMPL_FUSED_OPS(m, fastconv::cpu::Backend);
}
