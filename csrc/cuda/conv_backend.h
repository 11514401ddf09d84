// The convolution ops over the instance tables: operands made dense in the result's layout, the
// instance found, its workspace allocated, its launcher called.
//
// `Gpu` says where: constructed from a tensor, it makes that tensor's device current while it
// lives, and has `device` and `stream`. `algo` is "<algorithm>" (then the cheapest instance runs,
// of IEEE products) or "<algorithm>/<instance>".
#pragma once
#include <algorithm>
#include <cstring>

#include "../common/conv_ops.h"
#include "conv_algorithm.h"
#include "launch.h"

namespace fastconv::cuda {

inline const ConvInstance* find_instance(const ConvAlgorithm& algorithm, const char* name) {
  for (int i = 0; i < algorithm.size; ++i)
    if (std::strcmp(algorithm.instances[i].name, name) == 0) return &algorithm.instances[i];
  return nullptr;
}

// The tiles of every kernel but the plain one have 32-bit offsets, in bytes, between the images
// that their pixels, 128 at most, are of; an instance's `applicable` knows of y's own, not of those
// of the tensor that y is a slice of.
inline bool slice_fits(const ConvOperands& o) {
  if (o.epilogue.y_channels == 0) return true;
  const int64_t pixels = o.problem.out_size();
  const int64_t images = std::min(o.problem.N, 128 / pixels + 2);
  return double(images) * double(o.epilogue.y_channels) * double(pixels) * 8 < double(1u << 31);
}

template <class Gpu>
struct ConvBackend {
  static void run(const char* op, ConvOperands& o, const std::string& algo) {
    run(op, o, algo, nullptr, nullptr);
  }

 protected:
  // Fills mean and m2 ([K] each, or null), too, where the instance can; false: it cannot.
  static bool run(const char* op, ConvOperands& o, const std::string& algo, void* mean, void* m2) {
    const size_t slash = algo.find('/');
    const std::string name = algo.substr(0, slash);
    const ConvAlgorithm* algorithm = find_conv_algorithm(name.c_str());
    STD_TORCH_CHECK(algorithm != nullptr, op, ": unknown CUDA algorithm '", name, "'");
    const Gpu gpu(o.x);
    const Layout layout = o.channels_last ? Layout::kNHWC : Layout::kNCHW;
    const ConvInstance* instance = nullptr;
    std::string reason;
    if (slash == std::string::npos) {
      instance = choose_instance(*algorithm, o.problem, o.direction, o.dtype, layout,
                                 Products::kIeee, gpu.device, &reason);
    } else {
      instance = find_instance(*algorithm, algo.c_str() + slash + 1);
      STD_TORCH_CHECK(instance != nullptr, op, ": unknown CUDA kernel instance '", algo, "'");
      if (instance->direction != o.direction || instance->dtype != o.dtype ||
          instance->layout != layout)
        reason = "it is for another direction, dtype or layout";
      else
        reason = capability_refusal(*instance, gpu.device);
      if (reason.empty()) reason = instance->applicable(o.problem);
      if (!reason.empty()) instance = nullptr;
    }
    STD_TORCH_CHECK(instance != nullptr, op, ": algorithm '", algo, "' does not apply: ", reason);
    if (!slice_fits(o)) {
      algorithm = &conv_direct_plain;
      instance = choose_instance(*algorithm, o.problem, o.direction, o.dtype, layout,
                                 Products::kIeee, gpu.device, &reason);
    }

    const bool fprop = o.direction == Direction::kFprop, wgrad = o.direction == Direction::kWgrad;
    // The result is dense already; the operands may have any strides.
    const Tensor x = o.direction == Direction::kDgrad ? o.x : dense(o.x, o.channels_last);
    const Tensor w = wgrad ? o.w : dense(o.w, o.channels_last);
    const Tensor y = fprop ? o.y : dense(o.y, o.channels_last);
    ConvCall call{};
    call.problem = o.problem;
    call.x = const_cast<void*>(x.const_data_ptr());
    call.w = const_cast<void*>(w.const_data_ptr());
    call.y = const_cast<void*>(y.const_data_ptr());
    if (o.bias.has_value()) call.bias = o.bias->const_data_ptr();
    call.epilogue = o.epilogue;
    call.device = gpu.device;
    call.stream = gpu.stream;
    const bool stats = mean != nullptr && instance->stats_workspace != nullptr;
    if (stats) call.mean = mean, call.m2 = m2;
    const int64_t bytes = stats ? instance->stats_workspace(o.problem, gpu.device)
                                : instance->workspace(o.problem, gpu.device);
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace = empty_bytes(o.x, bytes);
      call.workspace = workspace->mutable_data_ptr();
    }
    const int error = gpu.launch(*instance, call);
    STD_TORCH_CHECK(error == 0, op, " (", name, "/", instance->name, "): ", error_text(error),
                    " (built for ", built_architectures(), ")");
    return stats;
  }
};

}  // namespace fastconv::cuda
