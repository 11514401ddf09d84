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

ConvCall call_of(const ConvOperands& o) {
  const ConvProblem& p = o.problem;
  ConvCall call{p,
                o.dtype,
                o.direction,
                ref(o.x, p.rank),
                ref(o.w, p.rank),
                ref(o.y, p.rank),
                nullptr,
                nullptr,
                num_threads(),
                {},
                {}};
  if (o.bias.has_value()) call.bias = o.bias->const_data_ptr();
  static_cast<Epilogue&>(call.epilogue) = o.epilogue;
  if (o.epilogue.residual != nullptr && o.epilogue.y_channels > 0) {
    const int64_t size = o.channels_last ? 1 : p.out_size();
    call.epilogue.y_unit = o.epilogue.y_channels * size;
    call.epilogue.residual_unit = p.K * size;
  }
  return call;
}

struct Backend {
  static void run(const char* op, ConvOperands& o, const std::string& algo) {
    const ConvAlgorithm& algorithm = applicable(op, o, algo);
    ConvCall call = call_of(o);
    run_call(algorithm, call, o.x);
  }

  static bool run_stats(const char* op, ConvOperands& o, const std::string& algo, Tensor& mean,
                        Tensor& m2) {
    const ConvAlgorithm& algorithm = applicable(op, o, algo);
    ConvCall call = call_of(o);
    const int64_t K = call.moments.K = o.problem.K, blocks = algorithm.moment_blocks(call);
    if (blocks == 0) {
      call.moments = {};
      run_call(algorithm, call, o.x);
      return false;
    }
    Tensor partial = empty_bytes(o.x, blocks * (2 * K + 1) * int64_t{sizeof(double)});
    auto* at = static_cast<double*>(partial.mutable_data_ptr());
    call.moments = {K, at, at + blocks * K, at + 2 * blocks * K};
    run_call(algorithm, call, o.x);
    merge_moments(call.moments, blocks, o.dtype, mean.mutable_data_ptr(), m2.mutable_data_ptr(),
                  call.threads);
    return true;
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

 private:
  static const ConvAlgorithm& applicable(const char* op, const ConvOperands& o,
                                         const std::string& algo) {
    const ConvAlgorithm* algorithm = find_conv_algorithm(algo.c_str());
    STD_TORCH_CHECK(algorithm != nullptr, op, ": unknown CPU algorithm '", algo, "'");
    const std::string reason = algorithm->applicable(o.problem, o.dtype, o.direction);
    STD_TORCH_CHECK(reason.empty(), op, ": algorithm '", algo, "' does not apply: ", reason);
    return *algorithm;
  }

  static void run_call(const ConvAlgorithm& algorithm, ConvCall& call, const Tensor& like) {
    const int64_t bytes =
        algorithm.workspace(call.problem, call.dtype, call.direction, call.threads);
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace = empty_bytes(like, bytes);
      call.workspace = workspace->mutable_data_ptr();
    }
    algorithm.run(call);
  }
};

}  // namespace
}  // namespace fastconv::cpu

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  FC_IMPL_CONV_OPS(m, fastconv::cpu::Backend);
  FC_IMPL_FUSED_OPS(m, fastconv::cpu::Backend);
}
