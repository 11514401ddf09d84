// The pooling ops over the instance table: the first instance that applies runs, in one launch.
//
// `Gpu` says where, as in conv_backend.h.
#pragma once
#include "../common/pool_ops.h"
#include "launch.h"
#include "pool_algorithm.h"

namespace fastconv::cuda {

// For messages: what of a call the choice of an instance depends on.
inline std::string described(const PoolCall& c) {
  const PoolProblem& p = c.p;
  std::string text = "N=" + std::to_string(p.N) + " C=" + std::to_string(p.C);
  const auto list = [&](const char* name, const int64_t(&values)[3]) {
    text += std::string(" ") + name + "=[";
    for (int axis = 3 - p.rank; axis < 3; ++axis)
      text += (axis > 3 - p.rank ? ", " : "") + std::to_string(values[axis]);
    text += "]";
  };
  list("input", p.in), list("output", p.out), list("kernel", p.kernel), list("stride", p.stride);
  list("padding", p.padding), list("dilation", p.dilation);
  return text + (c.channels_last ? " channels_last" : "");
}

template <class Gpu>
struct PoolBackend {
  static void run(const char* op, PoolOperands& o) {
    launch(op, o, o.backward ? PoolPass::kBackward : PoolPass::kForward);
  }
  static void gather(const char* op, PoolOperands& o) { launch(op, o, PoolPass::kGather); }
  static void unpool(const char* op, PoolOperands& o) { launch(op, o, PoolPass::kUnpool); }

 private:
  static void launch(const char* op, PoolOperands& o, PoolPass pass) {
    // The dispatcher comes here as soon as one of the tensors is on a GPU.
    const std::pair<const char*, const std::optional<Tensor>*> operands[] = {
        {"index", &o.index}, {"x", &o.x}, {"y", &o.y}, {"seed", &o.seed}};
    for (const auto& [name, t] : operands)
      STD_TORCH_CHECK(!t->has_value() || on_one_device(**t, *o.input), op, ": ", name,
                      " is on another device than the input");
    const Gpu gpu(*o.input);
    const PoolCall call = call_of(op, o);
    std::string reason;
    const PoolInstance* instance = choose_pool_instance(call, pass, &reason);
    STD_TORCH_CHECK(instance != nullptr, op, ": no CUDA kernel for ", described(call), ": ",
                    reason);
    const int error = gpu.launch(*instance, call);
    STD_TORCH_CHECK(error == 0, op, " (", instance->name, "): ", error_text(error), " (built for ",
                    built_architectures(), ")");
  }

  static bool on_one_device(const Tensor& a, const Tensor& b) {
    int32_t types[2] = {0, 0};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(a.get(), &types[0]));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(b.get(), &types[1]));
    return types[0] == types[1] && a.get_device_index() == b.get_device_index();
  }
};

}  // namespace fastconv::cuda
