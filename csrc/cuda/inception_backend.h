// The inception module's op on CUDA: the instance is found and its launcher called.
//
// `Gpu` says where, as in conv_backend.h.
#pragma once
#include "../common/inception_ops.h"
#include "inception_algorithm.h"
#include "launch.h"

namespace fastconv::cuda {

template <class Gpu>
struct InceptionBackend {
  static void run(const char* op, const InceptionCall& call, const std::string& algo,
                  const Tensor& on) {
    const Gpu gpu(on);
    std::string reason;
    // One that rounds its operands runs where it is named.
    const InceptionInstance* instance = choose_inception_instance(
        call, algo.empty() ? Products::kIeee : Products::kTf32, algo, gpu.device, &reason);
    if (instance == nullptr && !algo.empty()) {
      // What was chosen by the sizes may lie off its alignment this time.
      InceptionCall sizes = call;
      for (const void** base : {&sizes.x, &sizes.joined, &sizes.w3, &sizes.w5, &sizes.wp})
        *base = nullptr;
      const InceptionInstance* chosen =
          choose_inception_instance(sizes, Products::kTf32, algo, gpu.device, nullptr);
      if (chosen != nullptr)
        instance = choose_inception_instance(call, chosen->products, "", gpu.device, &reason);
    }
    STD_TORCH_CHECK(instance != nullptr, op, ": no CUDA kernel", algo.empty() ? "" : " '", algo,
                    algo.empty() ? "" : "'", " for this module: ", reason);
    const int error = gpu.launch(*instance, call);
    STD_TORCH_CHECK(error == 0, op, " (", instance->name, "): ", error_text(error), " (built for ",
                    built_architectures(), ")");
  }
};

}  // namespace fastconv::cuda
