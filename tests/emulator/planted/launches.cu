// Launch configurations that a GPU refuses.
#include "planted.h"

namespace planted {

// y[i] = x[i], any grid and block.
__global__ void copy(const float* x, float* y, int64_t n) {
  const int64_t block = blockIdx.x + int64_t(gridDim.x) * (blockIdx.y + gridDim.y * blockIdx.z);
  const int64_t threads = int64_t(blockDim.x) * blockDim.y * blockDim.z;
  const int64_t i = block * threads + threadIdx.x +
                    int64_t(blockDim.x) * (threadIdx.y + blockDim.y * threadIdx.z);
  if (i < n) y[i] = x[i];
}

__global__ void __launch_bounds__(64) bounded_copy(const float* x, float* y, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

void launch_copy(const Arguments& a, dim3 grid, dim3 block, size_t shared_bytes) {
  launch_kernel(copy, LaunchConfig{grid, block, shared_bytes, nullptr},
                static_cast<const float*>(a.x), a.y, a.n);
}

template <int kFloats>
__global__ void static_shared(const float* x, float* y, int64_t n) {
  FC_SHARED(float, tile, [kFloats]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x < n) y[threadIdx.x] = tile[threadIdx.x];
}
template <int kFloats>
void launch_static(const Arguments& a, size_t dynamic_bytes) {
  launch_kernel(static_shared<kFloats>, LaunchConfig{dim3(1), dim3(128), dynamic_bytes, nullptr},
                static_cast<const float*>(a.x), a.y, a.n);
}

void launch_bound(bool bug, const Arguments& a) {
  launch_kernel(bounded_copy, LaunchConfig{dim3(bug ? 1 : 2), dim3(bug ? 128 : 64), 0, nullptr},
                static_cast<const float*>(a.x), a.y, a.n);
}

#define FC_LAUNCH(name, wrong, right) \
  {name, [](bool bug, const Arguments& a) { bug ? wrong : right; }}

static const Scenario kScenarios[] = {
    FC_LAUNCH("too_many_threads", launch_copy(a, dim3(1), dim3(1025), 0),
              launch_copy(a, dim3(1), dim3(1024), 0)),
    FC_LAUNCH("too_many_threads_in_z", launch_copy(a, dim3(1), dim3(1, 1, 128), 0),
              launch_copy(a, dim3(2), dim3(1, 1, 64), 0)),
    FC_LAUNCH("no_threads", launch_copy(a, dim3(1), dim3(0), 0),
              launch_copy(a, dim3(128), dim3(1), 0)),
    FC_LAUNCH("no_blocks", launch_copy(a, dim3(0), dim3(128), 0),
              launch_copy(a, dim3(1), dim3(128), 0)),
    FC_LAUNCH("grid_y_too_large", launch_copy(a, dim3(1, 65536), dim3(128), 0),
              launch_copy(a, dim3(1, 65535), dim3(1), 0)),
    FC_LAUNCH("dynamic_shared_too_large", launch_copy(a, dim3(1), dim3(128), 227 * 1024 + 1),
              launch_copy(a, dim3(1), dim3(128), 227 * 1024)),
    FC_LAUNCH("static_shared_too_large", launch_static<12289>(a, 0), launch_static<12288>(a, 0)),
    FC_LAUNCH("shared_sum_too_large", launch_static<12288>(a, 180 * 1024),
              launch_static<12288>(a, 179 * 1024)),
    {"launch_bound", launch_bound},
};
extern const ScenarioList launches{kScenarios, std::size(kScenarios)};

}  // namespace planted
