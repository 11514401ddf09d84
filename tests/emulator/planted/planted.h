// Small kernels with one bug each and their correct twins (`bug` false): tests/test_emulator.py
// sees that every bug is caught and every twin passes.
#pragma once
#include <cstdint>
#include <iterator>

#include "detail/async_copy.cuh"
#include "detail/mma.cuh"
#include "detail/named_barrier.cuh"
#include "detail/platform.cuh"

namespace planted {

using fastconv::cuda::launch_kernel;
using fastconv::cuda::LaunchConfig;

struct Arguments {
  float* x;          // [n], an input
  float* y;          // [m]
  float* workspace;  // [m]
  int64_t n, m;
};

struct Scenario {
  const char* name;
  void (*launch)(bool bug, const Arguments&);
};

struct ScenarioList {
  const Scenario* data;
  int size;
};
extern const ScenarioList barriers, warps, memory, copies, matrices, launches, undefined, values;
extern const ScenarioList tma_copies, clusters, flags;

// One launch with 128 threads a block unless said otherwise; both twins take the same arguments.
template <class... Params, class... Args>
void run_twin(bool bug, void (*correct)(Params...), void (*wrong)(Params...), unsigned grid,
              unsigned block, Args... args) {
  launch_kernel(bug ? wrong : correct, LaunchConfig{dim3(grid), dim3(block), 0, nullptr}, args...);
}

// All scenarios of the shape kernel<bug>(x, y, n).
#define FC_TWINS(kernel, grid, block)                                                             \
  {#kernel, [](bool bug, const Arguments& a) {                                                    \
     run_twin(bug, kernel<false>, kernel<true>, grid, block, static_cast<const float*>(a.x), a.y, \
              a.n);                                                                               \
   }}

}  // namespace planted
