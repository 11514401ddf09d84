// Launchers and table of the backward kernels of NCHW.
#include "pool_dgrad_planes.cuh"
#include "pool_planes.h"

namespace fastconv::cuda {
namespace pool {
namespace {

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
std::string applicable(const PoolCall& given) {
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
int launch(const PoolCall& given, const Device& device, void* stream) {
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

#define FC_ROW(dtype, dtype_name, kind, kind_name)   \
  {"dgrad_" kind_name "_" dtype_name "_nchw_planes", \
   PoolPass::kBackward,                              \
   PoolKind::kind,                                   \
   DType::dtype,                                     \
   Layout::kNCHW,                                    \
   applicable<DType::dtype, PoolKind::kind>,         \
   launch<DType::dtype, PoolKind::kind>},
#define FC_KINDS(dtype, dtype_name)      \
  FC_ROW(dtype, dtype_name, kMax, "max") \
  FC_ROW(dtype, dtype_name, kSum, "sum") \
  FC_ROW(dtype, dtype_name, kLp, "lp")

const PoolInstance kRows[] = {FC_KINDS(kFloat32, "f32") FC_KINDS(kBFloat16, "bf16")
                                  FC_KINDS(kFloat16, "f16")};

}  // namespace
}  // namespace pool

extern const PoolTable pool_planes_dgrad_table = {pool::kRows,
                                                  sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
