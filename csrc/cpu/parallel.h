// Threads, without PyTorch in the headers: the op library implements these over
// torch_parallel_for (so torch.set_num_threads holds), another host may link its own.
#pragma once
#include <cstdint>

namespace fastconv::cpu {

int num_threads();
// Calls fn(begin, end, ctx) on disjoint contiguous ranges that cover [0, tasks); each range runs on
// one thread. Runs inline for one task or inside another parallel region.
void parallel_run(int64_t tasks, void (*fn)(int64_t, int64_t, void*), void* ctx);
// 0 <= thread_index() < num_threads(); distinct in concurrently running ranges.
int thread_index();

template <class F>
void parallel_for(int64_t tasks, const F& f) {
  parallel_run(
      tasks,
      [](int64_t begin, int64_t end, void* ctx) { (*static_cast<const F*>(ctx))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace fastconv::cpu
