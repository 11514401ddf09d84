// Launchers and table of the NHWC kernels.
#include "pool_channels.h"
#include "pool_dgrad_channels.cuh"

namespace fastconv::cuda {
namespace pool {
namespace {

// kLp runs the kernel of kSum.
constexpr PoolKind kernel_of(PoolKind kind) {
  return kind == PoolKind::kLp ? PoolKind::kSum : kind;
}

template <DType dtype, PoolKind kind>
constexpr int vec_of = kPoolChannels<scalar_of<dtype>, kernel_of(kind)>;

template <DType dtype, PoolKind kind, int K>
std::string applicable_fprop(const PoolCall& given) {
  const PoolCall call = evened(given);
  using scalar_t = scalar_of<dtype>;
  constexpr int vec = vec_of<dtype, kind>;
  std::string reason = refuse_channels(call, vec, sizeof(scalar_t));
  if (reason.empty() && kind == PoolKind::kLp) reason = refuse_power(call);
  if (!reason.empty()) return reason;
  const PoolProblem& p = call.p;
  if (kind == PoolKind::kMax && p.kernel_size() > PoolMaxLanes<scalar_t, vec>::kMaxTap)
    return "this kernel counts to 65535 taps, got " + std::to_string(p.kernel_size());
  if (K > 0 && (p.kernel[0] != 1 || p.in[0] != 1 || p.kernel[1] != K || p.kernel[2] != K ||
                p.dilation[1] != 1 || p.dilation[2] != 1))
    return "this kernel has windows of " + std::to_string(K) + "x" + std::to_string(K) +
           " neighbours, got " + std::to_string(p.kernel[0]) + "x" + std::to_string(p.kernel[1]) +
           "x" + std::to_string(p.kernel[2]);
  if (K == 7 && call.index_kind == PoolIndex::kLong) return "this kernel gives indices of one byte";
  return {};
}

template <DType dtype, PoolKind kind, int K>
int launch_fprop(const PoolCall& call, const Device&, void* stream) {
  using scalar_t = scalar_of<dtype>;
  const auto args = channel_arguments_of<scalar_t>(evened(call), vec_of<dtype, kind>);
  return launch_kernel(pool_fprop_channels_kernel<scalar_t, kernel_of(kind), K>,
                       config_for(args.vectors, kPoolChannelThreads, stream), args);
}

#define FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, k, mechanism) \
  {"fprop_" kind_name "_" dtype_name "_nhwc_" mechanism,               \
   PoolPass::kForward,                                                 \
   PoolKind::kind,                                                     \
   DType::dtype,                                                       \
   Layout::kNHWC,                                                      \
   applicable_fprop<DType::dtype, PoolKind::kind, k>,                  \
   launch_fprop<DType::dtype, PoolKind::kind, k>},
#define FC_FPROP_WINDOWS(dtype, dtype_name, kind, kind_name, vec)      \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 2, "vec" vec "_k2") \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 3, "vec" vec "_k3") \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 7, "vec" vec "_k7") \
  FC_FPROP_ROW(dtype, dtype_name, kind, kind_name, 0, "vec" vec)
#define FC_FPROP_KINDS(dtype, dtype_name, vec)                  \
  FC_FPROP_WINDOWS(dtype, dtype_name, kMax, "max", vec)         \
  FC_FPROP_WINDOWS(dtype, dtype_name, kSum, "sum", vec)         \
  FC_FPROP_WINDOWS(dtype, dtype_name, kLp, "lp", vec)           \
  FC_FPROP_ROW(dtype, dtype_name, kSample, "sample", 0, "vec4") \
  FC_FPROP_ROW(dtype, dtype_name, kExpectation, "expectation", 0, "vec4")

template <DType dtype, PoolKind kind>
std::string applicable_dgrad(const PoolCall& call) {
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
int launch_dgrad(const PoolCall& call, const Device&, void* stream) {
  using scalar_t = scalar_of<dtype>;
  const auto args = channel_arguments_of<scalar_t>(evened(call), kPoolChannels<scalar_t, kind>);
  return launch_kernel(pool_dgrad_channels_kernel<scalar_t, kind>,
                       config_for(args.vectors, kPoolChannelThreads, stream), args);
}

#define FC_DGRAD_ROW(dtype, dtype_name, kind, kind_name, vec) \
  {"dgrad_" kind_name "_" dtype_name "_nhwc_vec" vec,         \
   PoolPass::kBackward,                                       \
   PoolKind::kind,                                            \
   DType::dtype,                                              \
   Layout::kNHWC,                                             \
   applicable_dgrad<DType::dtype, PoolKind::kind>,            \
   launch_dgrad<DType::dtype, PoolKind::kind>},
#define FC_DGRAD_KINDS(dtype, dtype_name, vec)      \
  FC_DGRAD_ROW(dtype, dtype_name, kMax, "max", vec) \
  FC_DGRAD_ROW(dtype, dtype_name, kSum, "sum", vec) \
  FC_DGRAD_ROW(dtype, dtype_name, kLp, "lp", vec)

const PoolInstance kRows[] = {
    FC_FPROP_KINDS(kFloat32, "f32", "4") FC_FPROP_KINDS(kBFloat16, "bf16", "8")
        FC_FPROP_KINDS(kFloat16, "f16", "8") FC_DGRAD_KINDS(kFloat32, "f32", "4")
            FC_DGRAD_KINDS(kBFloat16, "bf16", "8") FC_DGRAD_KINDS(kFloat16, "f16", "8")};

}  // namespace
}  // namespace pool

extern const PoolTable pool_channels_table = {pool::kRows,
                                              sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
