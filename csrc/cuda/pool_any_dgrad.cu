// Launchers and table of the backward kernels that take every window.
#include "pool_dgrad_any.cuh"
#include "pool_launch.h"

namespace fastconv::cuda {
namespace pool {
namespace {

template <DType dtype, PoolKind kind>
int launch(const PoolCall& call, const Device&, void* stream) {
  const auto args = arguments_of<scalar_of<dtype>>(call);
  return launch_kernel(pool_dgrad_any_kernel<scalar_of<dtype>, kind>,
                       config_for(args.g.elements, kPoolAnyThreads, stream), args);
}

#define FC_ROW(dtype, dtype_name, layout, layout_name, kind, kind_name) \
  {"dgrad_" kind_name "_" dtype_name "_" layout_name "_any",            \
   PoolPass::kBackward,                                                 \
   PoolKind::kind,                                                      \
   dtype,                                                               \
   layout,                                                              \
   refuse,                                                              \
   launch<dtype, PoolKind::kind>},

const PoolInstance kRows[] = {
    FC_POOL_DTYPES(FC_ROW, kMax, "max")  //
    FC_POOL_DTYPES(FC_ROW, kSum, "sum")  //
    FC_POOL_DTYPES(FC_ROW, kLp, "lp")    //
};

}  // namespace
}  // namespace pool

extern const PoolTable pool_any_dgrad_table = {pool::kRows,
                                               sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
