#include <torch/csrc/stable/ops.h>

#include "parallel.h"

namespace fastconv::cpu {

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

int thread_index() {
  uint32_t index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return static_cast<int>(index);
}

void parallel_run(int64_t tasks, void (*fn)(int64_t, int64_t, void*), void* ctx) {
  if (tasks <= 0) return;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, 1, fn, ctx));
}

}  // namespace fastconv::cpu
