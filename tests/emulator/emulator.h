// Included by kernels/cuda/detail/platform.cuh in place of the CUDA headers when FC_EMULATE is
// defined: the unchanged kernels and launchers compile with a C++ compiler and run on the CPU.
#pragma once
#include <tuple>

#include "cuda_types.h"
#include "device.h"
#include "half_types.h"
#include "kernel_interface.h"

// The function-local constant is what tells one declaration (and instantiation) from another; all
// threads of the block that come by get the same memory.
#define FC_SHARED(type, name, extents)                                              \
  using name##_fc_array = type extents;                                             \
  static constexpr ::emu::SharedSite name##_fc_site{#name, sizeof(name##_fc_array), \
                                                    alignof(name##_fc_array)};      \
  name##_fc_array& name = *static_cast<name##_fc_array*>(::emu::shared_array(name##_fc_site))
#define FC_DYN_SHARED(type, name) type* name = static_cast<type*>(::emu::dynamic_shared())

namespace fastconv::cuda {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes;  // dynamic
  void* stream;
};

// As platform.cuh's for the GPU, except that the kernel has ended on return.
template <class... Params, class... Args>
int launch_kernel(void (*kernel)(Params...), const LaunchConfig& config, Args... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  } call{kernel, {static_cast<Params>(args)...}};
  const auto invoke = [](void* erased) {
    const Call& call = *static_cast<const Call*>(erased);
    std::apply(call.kernel, call.arguments);
  };
  return ::emu::run_launch(reinterpret_cast<const void*>(kernel), invoke, &call, sizeof call,
                           config.grid, config.block, config.shared_bytes);
}

}  // namespace fastconv::cuda
