// Launchers and table of the kernels for whole planes.
#include "pool_channels.h"
#include "pool_fprop_global.cuh"

namespace fastconv::cuda {
namespace pool {
namespace {

// kLp runs the kernel of kSum.
constexpr PoolKind kernel_of(PoolKind kind) {
  return kind == PoolKind::kLp ? PoolKind::kSum : kind;
}

// Below that, the kernels of small windows have less to set up.
constexpr int64_t kLeastElements = 16;

template <DType dtype, PoolKind kind, Layout layout>
std::string applicable(const PoolCall& given) {
  using scalar_t = scalar_of<dtype>;
  const PoolCall call = evened(given);
  std::string reason = layout == Layout::kNHWC
                           ? refuse_channels(call, 16 / sizeof(scalar_t), sizeof(scalar_t))
                           : refuse(call);
  if (reason.empty() && kind == PoolKind::kLp) reason = refuse_power(call);
  if (!reason.empty()) return reason;
  const PoolProblem& p = call.p;
  for (int a = 0; a < 3; ++a)
    if (p.out[a] != 1 || p.kernel[a] != p.in[a] || p.padding[a] != 0 || p.dilation[a] != 1)
      return "this kernel takes windows of whole planes, got " + std::to_string(p.kernel[a]) +
             " of " + std::to_string(p.in[a]);
  if (p.in_size() < kLeastElements || p.in_size() > kMaxCount / 2)
    return "this kernel takes planes of 16 to 2^30 elements, got " + std::to_string(p.in_size());
  if (p.N * p.C > kMaxCount)
    return "this kernel takes fewer than 2^31 planes, got " + std::to_string(p.N * p.C);
  return {};
}

int log2_of(int power) {
  int shift = 0;
  while (1 << shift < power) ++shift;
  return shift;
}

template <DType dtype, PoolKind kind, Layout layout>
int launch(const PoolCall& given, const Device&, void* stream) {
  using scalar_t = scalar_of<dtype>;
  constexpr int64_t vec = 16 / sizeof(scalar_t);
  const PoolCall call = evened(given);
  const PoolProblem& p = call.p;
  PoolGlobal<scalar_t> g{};
  g.planes = p.N * p.C;
  g.length = static_cast<int>(p.in_size());
  g.C = static_cast<int>(p.C);
  const bool lp = kind == PoolKind::kLp;
  g.squares = lp && call.power == 2;
  g.whole = lp && call.rescale ? static_cast<float>(p.kernel_size()) : 1.f;
  g.divisor = lp                  ? (call.rescale ? g.whole : 1.f)
              : call.divisor != 0 ? static_cast<float>(call.divisor)
                                  : static_cast<float>(p.in_size());
  g.long_index = call.index_kind == PoolIndex::kLong;
  g.x = static_cast<const scalar_t*>(call.x);
  g.y = static_cast<scalar_t*>(call.result);
  g.index = call.index_kind == PoolIndex::kNone ? nullptr : call.index;
  if constexpr (layout == Layout::kNCHW) {
    // A few pieces each.
    const int64_t pieces = ceil_div(p.in_size(), vec);
    g.lanes = pieces <= 8 ? 8 : pieces <= 16 ? 16 : pieces <= 256 ? 32 : 256;
    g.log2_lanes = log2_of(g.lanes);
    return launch_kernel(pool_fprop_global_planes_kernel<scalar_t, kernel_of(kind)>,
                         config_for(g.planes * g.lanes, kPoolGlobalThreads, stream), g);
  } else {
    g.lanes = 1;
    while (g.lanes < 32 && g.lanes * vec < p.C) g.lanes *= 2;
    g.log2_lanes = log2_of(g.lanes);
    const int64_t groups = ceil_div(p.C, g.lanes * vec);
    g.groups = FastDivmod(static_cast<uint32_t>(groups));
    return launch_kernel(pool_fprop_global_channels_kernel<scalar_t, kernel_of(kind)>,
                         config_for(p.N * groups * kPoolGlobalThreads, kPoolGlobalThreads, stream),
                         g);
  }
}

#define FC_ROW(dtype, dtype_name, kind, kind_name, layout, layout_name) \
  {"fprop_" kind_name "_" dtype_name "_" layout_name "_global",         \
   PoolPass::kForward,                                                  \
   PoolKind::kind,                                                      \
   DType::dtype,                                                        \
   Layout::layout,                                                      \
   applicable<DType::dtype, PoolKind::kind, Layout::layout>,            \
   launch<DType::dtype, PoolKind::kind, Layout::layout>},
#define FC_LAYOUTS(dtype, dtype_name, kind, kind_name)      \
  FC_ROW(dtype, dtype_name, kind, kind_name, kNCHW, "nchw") \
  FC_ROW(dtype, dtype_name, kind, kind_name, kNHWC, "nhwc")
#define FC_KINDS(dtype, dtype_name)          \
  FC_LAYOUTS(dtype, dtype_name, kMax, "max") \
  FC_LAYOUTS(dtype, dtype_name, kSum, "sum") \
  FC_LAYOUTS(dtype, dtype_name, kLp, "lp")

const PoolInstance kRows[] = {FC_KINDS(kFloat32, "f32") FC_KINDS(kBFloat16, "bf16")
                                  FC_KINDS(kFloat16, "f16")};

}  // namespace
}  // namespace pool

extern const PoolTable pool_global_table = {pool::kRows,
                                            sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
