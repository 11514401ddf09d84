// Launchers and table of the NCHW kernels.
#include "pool_dgrad_planes.cuh"
#include "pool_fprop_planes.cuh"
#include "pool_planes.h"

namespace fastconv::cuda {
namespace pool {
namespace {

// kLp runs the kernel of kSum.
constexpr PoolKind kernel_of(PoolKind kind) {
  return kind == PoolKind::kLp ? PoolKind::kSum : kind;
}

// x, the stage of y and that of the byte indices (16 bits each), for so many rows of y of so many
// planes.
struct FpropLayout {
  const PoolProblem& p;
  int64_t size;

  PlanesLayout operator()(int64_t rows, int64_t images) const {
    const int64_t x_rows = std::min(p.in[1], (rows - 1) * p.stride[1] + p.kernel[1]);
    const int64_t x = (images - 1) * p.in_size() + x_rows * p.in[2];
    const int64_t y = (images - 1) * p.out_size() + rows * p.out[2];
    PlanesLayout layout;
    layout.stage = run_bytes(x, size);
    layout.index_stage = layout.stage + run_bytes(y, size);
    layout.total = layout.index_stage + ceil_div(2 * (y + 15), 16) * 16;
    return layout;
  }
};

template <DType dtype, PoolKind kind, int K, int STRIDE>
std::string applicable_fprop(const PoolCall& given) {
  const PoolCall call = evened(given);
  std::string reason = refuse_planes(call);
  if (!reason.empty()) return reason;
  const PoolProblem& p = call.p;
  if (p.kernel[1] != K || p.stride[1] != STRIDE)
    return "this kernel has windows of " + std::to_string(K) + "x" + std::to_string(K) +
           ", stride " + std::to_string(STRIDE) + ", got " + std::to_string(p.kernel[1]) +
           ", stride " + std::to_string(p.stride[1]);
  const FpropLayout layout{p, sizeof(scalar_of<dtype>)};
  const int64_t rows = strip_rows(p.out[1], layout);
  if (rows == 0) return refuse_row(p);
  if (p.N * p.C * ceil_div(p.out[1], rows) > kMaxCount)
    return "this kernel takes fewer than 2^31 strips of planes, got N=" + std::to_string(p.N);
  return {};
}

template <DType dtype, PoolKind kind, int K, int STRIDE>
int launch_fprop(const PoolCall& given, const Device& device, void* stream) {
  using scalar_t = scalar_of<dtype>;
  const PoolCall call = evened(given);
  const PoolProblem& p = call.p;
  PoolPlanes<scalar_t> g = planes_of<scalar_t>(call);
  const FpropLayout layout{p, sizeof(scalar_t)};
  const int64_t rows = strip_rows(p.out[1], layout), strips = ceil_div(p.out[1], rows);
  const int64_t planes = p.N * p.C;
  const int64_t images = strips > 1 ? 1 : block_images(planes, rows, layout, device);
  const PlanesLayout bytes = layout(rows, images);
  // Long walks reuse more rows, short ones fill the block.
  int64_t walk = std::min(rows, int64_t{K > STRIDE ? 16 : 4});
  while (walk > 1 && images * ceil_div(rows, walk) * p.out[2] < kPoolPlanesThreads)
    walk = ceil_div(walk, 2);
  const int64_t walks = ceil_div(rows, walk);
  g.images = static_cast<int>(images), g.rows = static_cast<int>(rows);
  g.walk = static_cast<int>(ceil_div(rows, walks));
  g.stage = static_cast<int>(bytes.stage), g.index_stage = static_cast<int>(bytes.index_stage);
  g.strips = FastDivmod(static_cast<uint32_t>(strips));
  g.walks = FastDivmod(static_cast<uint32_t>(walks));
  g.columns = FastDivmod(static_cast<uint32_t>(p.out[2]));
  g.by_rows = FastDivmod(static_cast<uint32_t>(rows));
  LaunchConfig config = config_for(ceil_div(planes, images) * strips * kPoolPlanesThreads,
                                   kPoolPlanesThreads, stream);
  config.shared_bytes = static_cast<size_t>(bytes.total);
  return launch_kernel(pool_fprop_planes_kernel<scalar_t, kernel_of(kind), K, STRIDE>, config, g);
}

#define FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, k, s)   \
  {"fprop_" kind_name "_" dtype_name "_nchw_planes_k" #k "s" #s, \
   PoolPass::kForward,                                           \
   PoolKind::kind,                                               \
   DType::dtype,                                                 \
   Layout::kNCHW,                                                \
   applicable_fprop<DType::dtype, PoolKind::kind, k, s>,         \
   launch_fprop<DType::dtype, PoolKind::kind, k, s>},
#define FC_FPROP_WINDOWS(dtype, dtype_name, kind, kind_name) \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 2, 2)     \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 3, 2)     \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 3, 1)
#define FC_FPROP_KINDS(dtype, dtype_name)                  \
  FC_FPROP_WINDOWS(dtype, dtype_name, kMax, "max")         \
  FC_FPROP_ROW(dtype, dtype_name, kMax, "max", 7, 1)       \
  FC_FPROP_WINDOWS(dtype, dtype_name, kSum, "sum")         \
  FC_FPROP_ROW(dtype, dtype_name, kSum, "sum", 7, 1)       \
  FC_FPROP_WINDOWS(dtype, dtype_name, kLp, "lp")           \
  FC_FPROP_ROW(dtype, dtype_name, kLp, "lp", 7, 1)         \
  FC_FPROP_ROW(dtype, dtype_name, kSample, "sample", 2, 2) \
  FC_FPROP_ROW(dtype, dtype_name, kSample, "sample", 3, 2)

// dy as fp32, the byte indices and the stage of dx, for so many rows of dx of so many planes.
struct DgradLayout {
  const PoolProblem& p;
  int64_t size;

  PlanesLayout operator()(int64_t rows, int64_t images) const {
    const int64_t y_rows =
        std::min(p.out[1], (rows - 1 + p.kernel[1] - 1) / p.stride[1] + 1 + (rows < p.in[1]));
    const int64_t y = (images - 1) * p.out_size() + y_rows * p.out[2];
    const int64_t x = (images - 1) * p.in_size() + rows * p.in[2];
    PlanesLayout layout;
    layout.index_stage = run_bytes(y, 4);
    layout.stage = layout.index_stage + run_bytes(y, 1);
    layout.total = layout.stage + run_bytes(x, size);
    return layout;
  }
};

template <DType dtype, PoolKind kind>
std::string applicable_dgrad(const PoolCall& given) {
  const PoolCall call = evened(given);
  std::string reason = refuse_planes(call);
  if (!reason.empty()) return reason;
  if (call.index_kind == PoolIndex::kLong) return "this kernel takes indices of one byte";
  const PoolProblem& p = call.p;
  const DgradLayout layout{p, sizeof(scalar_of<dtype>)};
  const int64_t rows = strip_rows(p.in[1], layout);
  if (rows == 0) return refuse_row(p);
  if (p.N * p.C * ceil_div(p.in[1], rows) > kMaxCount)
    return "this kernel takes fewer than 2^31 strips of planes, got N=" + std::to_string(p.N);
  return {};
}

template <DType dtype, PoolKind kind>
int launch_dgrad(const PoolCall& given, const Device& device, void* stream) {
  using scalar_t = scalar_of<dtype>;
  const PoolCall call = evened(given);
  const PoolProblem& p = call.p;
  PoolPlanes<scalar_t> g = planes_of<scalar_t>(call);
  const DgradLayout layout{p, sizeof(scalar_t)};
  const int64_t rows = strip_rows(p.in[1], layout), strips = ceil_div(p.in[1], rows);
  const int64_t planes = p.N * p.C;
  const int64_t images = strips > 1 ? 1 : block_images(planes, rows, layout, device);
  const PlanesLayout bytes = layout(rows, images);
  g.images = static_cast<int>(images), g.rows = static_cast<int>(rows);
  g.stage = static_cast<int>(bytes.stage), g.index_stage = static_cast<int>(bytes.index_stage);
  g.strips = FastDivmod(static_cast<uint32_t>(strips));
  g.columns = FastDivmod(static_cast<uint32_t>(p.in[2]));
  g.by_rows = FastDivmod(static_cast<uint32_t>(rows));
  g.out_columns = FastDivmod(static_cast<uint32_t>(p.out[2]));
  g.by_out_rows = FastDivmod(static_cast<uint32_t>(p.out[1]));
  LaunchConfig config = config_for(ceil_div(planes, images) * strips * kPoolPlanesThreads,
                                   kPoolPlanesThreads, stream);
  config.shared_bytes = static_cast<size_t>(bytes.total);
  return launch_kernel(pool_dgrad_planes_kernel<scalar_t, kind>, config, g);
}

#define FC_DGRAD_ROW(dtype, dtype_name, kind, kind_name) \
  {"dgrad_" kind_name "_" dtype_name "_nchw_planes",     \
   PoolPass::kBackward,                                  \
   PoolKind::kind,                                       \
   DType::dtype,                                         \
   Layout::kNCHW,                                        \
   applicable_dgrad<DType::dtype, PoolKind::kind>,       \
   launch_dgrad<DType::dtype, PoolKind::kind>},
#define FC_DGRAD_KINDS(dtype, dtype_name)      \
  FC_DGRAD_ROW(dtype, dtype_name, kMax, "max") \
  FC_DGRAD_ROW(dtype, dtype_name, kSum, "sum") \
  FC_DGRAD_ROW(dtype, dtype_name, kLp, "lp")

const PoolInstance kRows[] = {FC_FPROP_KINDS(kFloat32, "f32") FC_FPROP_KINDS(kBFloat16, "bf16")
                                  FC_FPROP_KINDS(kFloat16, "f16") FC_DGRAD_KINDS(kFloat32, "f32")
                                      FC_DGRAD_KINDS(kBFloat16, "bf16")
                                          FC_DGRAD_KINDS(kFloat16, "f16")};

}  // namespace
}  // namespace pool

extern const PoolTable pool_planes_table = {pool::kRows,
                                            sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
