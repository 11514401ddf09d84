// Small windows of NCHW planes, forward; the third pass besides those of pool_passes.h.
#pragma once
#include "pool_passes.h"

namespace fastconv::cpu {

bool pool_separable_applies(const CpuPoolCall&);
template <class A>
PoolWork pool_separable_work(const CpuPoolCall&, const PoolLines<A>&);
template <class A>
void pool_separable(const CpuPoolCall&, const PoolLines<A>&, int64_t begin, int64_t end,
                    char* scratch);

}  // namespace fastconv::cpu
