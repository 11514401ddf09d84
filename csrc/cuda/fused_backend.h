// The fused ops on CUDA: convolutions with an epilogue through the instance tables, the passes of
// batch normalisation through norm_launch.h.
#pragma once
#include "../common/fused_ops.h"
#include "conv_backend.h"
#include "norm_launch.h"

namespace fastconv::cuda {

template <class Gpu>
struct FusedBackend : ConvBackend<Gpu> {
  // Where the instance takes no statistics along, the pass over y does.
  static bool run_stats(const char* op, ConvOperands& o, const std::string& algo, Tensor& mean,
                        Tensor& m2) {
    return ConvBackend<Gpu>::run(op, o, algo, mean.mutable_data_ptr(), m2.mutable_data_ptr());
  }

  static void norm(const char* op, NormPass pass, NormCall& call, const Tensor& on) {
    const Gpu gpu(on);
    const int64_t bytes = norm_workspace(pass, call);
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace = empty_bytes(on, bytes);
      call.workspace = workspace->mutable_data_ptr();
    }
    const int error = gpu.launch(pass, call);
    STD_TORCH_CHECK(error == 0, op, ": ", error_text(error), " (built for ", built_architectures(),
                    ")");
  }
};

}  // namespace fastconv::cuda
