// What the launchers of the pooling kernels (pool_*.cu) share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "detail/pool_arguments.cuh"
#include "dtype_scalar.h"
#include "pool_tables.h"

namespace fastconv::cuda::pool {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t kMaxCount = INT32_MAX;  // of blocks, and of what FastDivmod divides

inline LaunchConfig config_for(int64_t threads, int block, void* stream) {
  return {dim3(static_cast<unsigned>(ceil_div(threads, block))), dim3(static_cast<unsigned>(block)),
          0, stream};
}

// The same with adaptive axes written as strided ones where all their windows are equally long.
inline PoolCall evened(PoolCall call) {
  PoolProblem& p = call.p;
  for (int a = 0; a < 3; ++a)
    if (p.stride[a] == 0 && p.in[a] % p.out[a] == 0) p.stride[a] = p.kernel[a];
  return call;
}

inline PoolGeometry geometry_of(const PoolCall& call, bool input) {
  const PoolProblem& p = call.p;
  PoolGeometry g;
  for (int a = 0; a < 3; ++a) {
    PoolAxis& axis = g.axis[a];
    axis.in = static_cast<int>(p.in[a]);
    axis.kernel = static_cast<int>(p.kernel[a]);
    axis.out = static_cast<int>(p.out[a]);
    axis.padding = static_cast<int>(p.padding[a]);
    axis.stride = static_cast<int>(p.stride[a]);
    axis.dilation = static_cast<int>(p.dilation[a]);
    axis.by_stride = FastDivmod(static_cast<uint32_t>(std::max(p.stride[a], int64_t{1})));
    axis.by_dilation = FastDivmod(static_cast<uint32_t>(p.dilation[a]));
    axis.by_kernel = FastDivmod(static_cast<uint32_t>(p.kernel[a]));
    axis.by_in = FastDivmod64(static_cast<uint64_t>(p.in[a]));
    axis.by_out = FastDivmod64(static_cast<uint64_t>(p.out[a]));
  }
  g.C = static_cast<int>(p.C);
  g.in_size = p.in_size();
  g.out_size = p.out_size();
  g.by_C = FastDivmod64(static_cast<uint64_t>(p.C));
  g.elements = p.N * p.C * (input ? p.in_size() : p.out_size());
  g.channels_last = call.channels_last;
  return g;
}

template <class scalar_t>
PoolArguments<scalar_t> arguments_of(const PoolCall& call) {
  using A = acc_t<scalar_t>;
  PoolArguments<scalar_t> args;
  args.g = geometry_of(call, call.backward);
  args.power = PoolPower(call.power);
  args.divisor = static_cast<A>(call.divisor);
  args.whole = call.rescale ? static_cast<A>(call.p.kernel_size()) : A(0);
  args.include_pad = call.include_pad;
  args.long_index = call.index_kind == PoolIndex::kLong;
  args.x = static_cast<const scalar_t*>(call.x);
  args.y = static_cast<const scalar_t*>(call.y);
  args.dy = static_cast<const scalar_t*>(call.dy);
  args.result = static_cast<scalar_t*>(call.result);
  args.index = call.index_kind == PoolIndex::kNone ? nullptr : call.index;
  args.seed = call.seed;
  return args;
}

// Empty, or the reason; what every pooling kernel asks.
std::string refuse(const PoolCall&);

}  // namespace fastconv::cuda::pool

// FC_POOL_DTYPES(row, ...): row(dtype, its name, layout, its name, ...) for what there is of both.
#define FC_POOL_LAYOUTS(row, dtype, dtype_name, ...)                \
  row(DType::dtype, dtype_name, Layout::kNCHW, "nchw", __VA_ARGS__) \
      row(DType::dtype, dtype_name, Layout::kNHWC, "nhwc", __VA_ARGS__)
#define FC_POOL_DTYPES(row, ...)                       \
  FC_POOL_LAYOUTS(row, kFloat32, "f32", __VA_ARGS__)   \
  FC_POOL_LAYOUTS(row, kFloat64, "f64", __VA_ARGS__)   \
  FC_POOL_LAYOUTS(row, kBFloat16, "bf16", __VA_ARGS__) \
  FC_POOL_LAYOUTS(row, kFloat16, "f16", __VA_ARGS__)
