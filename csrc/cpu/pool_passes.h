// The two directions of pooling on the CPU. Work is numbered from 0 in rows of the result; every
// range of it may run on its own, with its own scratch.
#pragma once
#include "pool_lines.h"

namespace fastconv::cpu {

struct PoolWork {
  int64_t tasks, scratch;  // rows; bytes for one thread
};

template <class A>
PoolWork pool_forward_work(const CpuPoolCall&, const PoolLines<A>&);
template <class A>
void pool_forward(const CpuPoolCall&, const PoolLines<A>&, int64_t begin, int64_t end,
                  char* scratch);

template <class A>
PoolWork pool_backward_work(const CpuPoolCall&, const PoolLines<A>&);
template <class A>
void pool_backward(const CpuPoolCall&, const PoolLines<A>&, int64_t begin, int64_t end,
                   char* scratch);

}  // namespace fastconv::cpu
