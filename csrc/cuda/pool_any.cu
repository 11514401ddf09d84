// Launchers and table of the kernels that take every window, and what all kernels refuse.
#include "pool_dgrad_any.cuh"
#include "pool_fprop_any.cuh"
#include "pool_launch.h"

namespace fastconv::cuda {
namespace pool {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

std::string of_axes(const int64_t (&values)[3]) {
  return "[" + text(values[0]) + ", " + text(values[1]) + ", " + text(values[2]) + "]";
}

}  // namespace

std::string refuse(const PoolCall& call) {
  const PoolProblem& p = call.p;
  double taps = 1;
  for (int a = 0; a < 3; ++a) {
    taps *= double(p.kernel[a]);
    if (p.in[a] + 2 * p.padding[a] + p.stride[a] + p.dilation[a] * p.kernel[a] > kMaxCount ||
        p.out[a] >= kMaxCount)
      return "pooling takes extents below 2^31, got input " + of_axes(p.in) + ", padding " +
             of_axes(p.padding) + ", kernel " + of_axes(p.kernel) + ", stride " +
             of_axes(p.stride) + ", dilation " + of_axes(p.dilation);
  }
  if (p.C > kMaxCount || taps > double(kMaxCount))
    return "pooling takes C and the taps of a window below 2^31, got C=" + text(p.C) + ", kernel " +
           of_axes(p.kernel);
  return {};
}

namespace {

template <DType dtype, PoolKind kind>
int launch_fprop(const PoolCall& call, const Device&, void* stream) {
  const auto args = arguments_of<scalar_of<dtype>>(call);
  return launch_kernel(pool_fprop_any_kernel<scalar_of<dtype>, kind>,
                       config_for(args.g.elements, kPoolAnyThreads, stream), args);
}

#define FC_FPROP_ROW(dtype, dtype_name, layout, layout_name, kind, kind_name) \
  {"fprop_" kind_name "_" dtype_name "_" layout_name "_any",                  \
   PoolPass::kForward,                                                        \
   PoolKind::kind,                                                            \
   dtype,                                                                     \
   layout,                                                                    \
   refuse,                                                                    \
   launch_fprop<dtype, PoolKind::kind>},

template <DType dtype, PoolKind kind>
int launch_dgrad(const PoolCall& call, const Device&, void* stream) {
  const auto args = arguments_of<scalar_of<dtype>>(call);
  return launch_kernel(pool_dgrad_any_kernel<scalar_of<dtype>, kind>,
                       config_for(args.g.elements, kPoolAnyThreads, stream), args);
}

#define FC_DGRAD_ROW(dtype, dtype_name, layout, layout_name, kind, kind_name) \
  {"dgrad_" kind_name "_" dtype_name "_" layout_name "_any",                  \
   PoolPass::kBackward,                                                       \
   PoolKind::kind,                                                            \
   dtype,                                                                     \
   layout,                                                                    \
   refuse,                                                                    \
   launch_dgrad<dtype, PoolKind::kind>},

// clang-format off
const PoolInstance kRows[] = {
    FC_POOL_DTYPES(FC_FPROP_ROW, kMax, "max")
    FC_POOL_DTYPES(FC_FPROP_ROW, kSum, "sum")
    FC_POOL_DTYPES(FC_FPROP_ROW, kLp, "lp")
    FC_POOL_DTYPES(FC_FPROP_ROW, kSample, "sample")
    FC_POOL_DTYPES(FC_FPROP_ROW, kExpectation, "expectation")
    FC_POOL_DTYPES(FC_DGRAD_ROW, kMax, "max")
    FC_POOL_DTYPES(FC_DGRAD_ROW, kSum, "sum")
    FC_POOL_DTYPES(FC_DGRAD_ROW, kLp, "lp")
};
// clang-format on

}  // namespace
}  // namespace pool

extern const PoolTable pool_any_table = {pool::kRows, sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
