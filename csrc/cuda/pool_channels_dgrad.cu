// Launchers and table of the backward kernels of NHWC.
#include "pool_channels.h"
#include "pool_dgrad_channels.cuh"

namespace fastconv::cuda {
namespace pool {
namespace {

template <DType dtype, PoolKind kind>
std::string applicable(const PoolCall& call) {
  using scalar_t = scalar_of<dtype>;
  std::string reason =
      refuse_channels(evened(call), kPoolChannels<scalar_t, kind>, sizeof(scalar_t));
  const int64_t* const dilation = call.p.dilation;
  if (reason.empty() && (dilation[0] != 1 || dilation[1] != 1 || dilation[2] != 1))
    return "this kernel takes dilation 1";
  if (reason.empty() && call.index_kind == PoolIndex::kLong)
    return "this kernel takes indices of one byte";
  return reason.empty() && kind == PoolKind::kLp ? refuse_power(call) : reason;
}

template <DType dtype, PoolKind kind>
int launch(const PoolCall& call, const Device&, void* stream) {
  using scalar_t = scalar_of<dtype>;
  const auto args = channel_arguments_of<scalar_t>(evened(call), kPoolChannels<scalar_t, kind>);
  return launch_kernel(pool_dgrad_channels_kernel<scalar_t, kind>,
                       config_for(args.vectors, kPoolChannelThreads, stream), args);
}

#define FC_ROW(dtype, dtype_name, kind, kind_name, vec) \
  {"dgrad_" kind_name "_" dtype_name "_nhwc_vec" vec,   \
   PoolPass::kBackward,                                 \
   PoolKind::kind,                                      \
   DType::dtype,                                        \
   Layout::kNHWC,                                       \
   applicable<DType::dtype, PoolKind::kind>,            \
   launch<DType::dtype, PoolKind::kind>},
#define FC_KINDS(dtype, dtype_name, vec)      \
  FC_ROW(dtype, dtype_name, kMax, "max", vec) \
  FC_ROW(dtype, dtype_name, kSum, "sum", vec) \
  FC_ROW(dtype, dtype_name, kLp, "lp", vec)

const PoolInstance kRows[] = {FC_KINDS(kFloat32, "f32", "4") FC_KINDS(kBFloat16, "bf16", "8")
                                  FC_KINDS(kFloat16, "f16", "8")};

}  // namespace
}  // namespace pool

extern const PoolTable pool_channels_dgrad_table = {pool::kRows,
                                                    sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
