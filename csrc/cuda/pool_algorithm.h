// What the CUDA pooling kernels offer: one table of kernel instances, each a fixed choice of
// operation, dtype, layout and template parameters. No PyTorch and no CUDA headers here: the op
// registration, the emulation and any C++ user read the same table and call the same launchers.
#pragma once
#include <string>

#include "../common/pool_call.h"
#include "conv_algorithm.h"

namespace fastconv::cuda {

enum class PoolPass : int { kForward = 0, kBackward = 1, kGather = 2, kUnpool = 3 };

struct PoolInstance {
  // <pass>_<kind>_<dtype>_<layout>_<mechanism>, unique, e.g. "fprop_max_f32_nhwc_vec4_k3s2"; the
  // catalogue, the budgets and the self-test speak of it.
  const char* name;
  PoolPass pass;
  PoolKind kind;
  DType dtype;
  Layout layout;
  // Empty when the call can run, else the reason why not, in one sentence with the values.
  std::string (*applicable)(const PoolCall&);
  // Launches on the stream; returns the cudaError_t. Never synchronises, allocates or asks the
  // driver.
  int (*launch)(const PoolCall&, const Device&, void* stream);
};

// In order of preference: the first that applies runs. The last of each pass, kind, dtype and
// layout takes everything.
struct PoolInstanceList {
  const PoolInstance* const* data;
  int size;
};
FC_API PoolInstanceList pool_instances();

// The instance that runs the call, or null; then `reason` (if given) says why not.
FC_API const PoolInstance* choose_pool_instance(const PoolCall&, PoolPass, std::string* reason);

}  // namespace fastconv::cuda
