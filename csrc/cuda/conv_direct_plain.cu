// Launchers and table of the plain twin: every problem, every dtype, both layouts.
#include "conv_dgrad_direct_plain.cuh"
#include "conv_direct_launch.h"
#include "conv_fprop_direct_plain.cuh"
#include "conv_wgrad_direct_plain.cuh"

namespace fastconv::cuda {
namespace {

// Fraction of the FMA rate: two loads and their addresses per multiply-add. Not measured on a GPU.
constexpr double kEfficiency = 0.04;
// The kernels stride over what a grid of this many blocks leaves.
constexpr int64_t kMaxBlocks = 1 << 20;

LaunchConfig config_for(int64_t elements, void* stream) {
  const int64_t blocks = std::min(ceil_div(elements, kPlainThreads), kMaxBlocks);
  return {dim3(static_cast<unsigned>(blocks)), dim3(kPlainThreads), 0, stream};
}

int64_t weight_elements(const ConvProblem& p) {
  return p.K * p.channels_per_group() * p.filter_size();
}

// Enough threads for a large GPU where dw is small; of the problem alone, so that the sums are the
// same on every device.
int64_t wgrad_slices(const ConvProblem& p) {
  const int64_t rows = p.N * p.out[0] * p.out[1];
  const int64_t wanted = ceil_div(int64_t{1} << 18, weight_elements(p));
  return std::min({rows, wanted, int64_t{256}});
}

std::string applicable(const ConvProblem&) { return {}; }

int64_t no_workspace(const ConvProblem&, const Device&) { return 0; }

template <class acc>
int64_t wgrad_workspace(const ConvProblem& p, const Device&) {
  return wgrad_slices(p) * weight_elements(p) * int64_t{sizeof(acc)};
}

template <DType dtype, Direction direction>
double cost(const ConvProblem& p, const Device& device) {
  using scalar_t = scalar_of<dtype>;
  using acc = acc_t<scalar_t>;
  const DeviceRates rates = device_rates(device);
  double threads, bytes = tensor_bytes(p, sizeof(scalar_t)), launches = 1;
  switch (direction) {
    case Direction::kFprop: threads = double(p.N) * p.K * p.out_size(); break;
    case Direction::kDgrad: threads = double(p.N) * p.C * p.in_size(); break;
    default:
      threads = double(weight_elements(p)) * wgrad_slices(p);
      bytes += 2 * threads * sizeof(acc);
      launches = 2;
  }
  const double filled = std::min(1.0, threads / (device.sm_count * 1024.0));
  const double multiply = 2 * p.macs() / (fma_rate(rates, sizeof(acc)) * kEfficiency * filled);
  return launches * rates.launch_s + std::max(multiply, bytes / rates.bytes_per_s);
}

template <DType dtype, Layout layout>
int launch_conv_fprop_direct_plain(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  constexpr bool channels_last = layout == Layout::kNHWC;
  const ConvProblem& p = call.problem;
  const DenseTensor y_at = dense_y(p, channels_last);
  const int64_t skipped = (call.y_channels() - p.K) * (channels_last ? 1 : p.out_size());
  return launch_kernel(
      conv_fprop_direct_plain_kernel<scalar_t>, config_for(y_at.elements(), call.stream), p,
      dense_x(p, channels_last), dense_w(p, channels_last), y_at,
      static_cast<const scalar_t*>(call.x), static_cast<const scalar_t*>(call.w),
      static_cast<const scalar_t*>(call.bias), store_epilogue<acc_t<scalar_t>>(call.epilogue),
      skipped, static_cast<scalar_t*>(call.y));
}

template <DType dtype, Layout layout>
int launch_conv_dgrad_direct_plain(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  constexpr bool channels_last = layout == Layout::kNHWC;
  const ConvProblem& p = call.problem;
  const DenseTensor x_at = dense_x(p, channels_last);
  return launch_kernel(conv_dgrad_direct_plain_kernel<scalar_t>,
                       config_for(x_at.elements(), call.stream), p, x_at, dense_w(p, channels_last),
                       dense_y(p, channels_last), static_cast<const scalar_t*>(call.y),
                       static_cast<const scalar_t*>(call.w), static_cast<scalar_t*>(call.x));
}

template <DType dtype, Layout layout>
int launch_conv_wgrad_direct_plain(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  using acc = acc_t<scalar_t>;
  constexpr bool channels_last = layout == Layout::kNHWC;
  const ConvProblem& p = call.problem;
  const int64_t slices = wgrad_slices(p), weights = weight_elements(p);
  acc* const partial = static_cast<acc*>(call.workspace);
  const int error = launch_kernel(
      conv_wgrad_direct_plain_kernel<scalar_t>, config_for(slices * weights, call.stream), p,
      dense_x(p, channels_last), dense_w(p, channels_last), dense_y(p, channels_last),
      static_cast<const scalar_t*>(call.x), static_cast<const scalar_t*>(call.y), partial, slices);
  if (error != 0) return error;
  return launch_wgrad_reduce<dtype>(partial, call.w, weights, slices, call.stream);
}

#define PLAIN_ROWS(dtype, dtype_name, layout, layout_name)                             \
  {"fprop_" dtype_name "_" layout_name "_analytic",                                    \
   Direction::kFprop,                                                                  \
   dtype,                                                                              \
   layout,                                                                             \
   Products::kIeee,                                                                    \
   applicable,                                                                         \
   no_workspace,                                                                       \
   cost<dtype, Direction::kFprop>,                                                     \
   launch_conv_fprop_direct_plain<dtype, layout>},                                     \
      {"dgrad_" dtype_name "_" layout_name "_analytic",                                \
       Direction::kDgrad,                                                              \
       dtype,                                                                          \
       layout,                                                                         \
       Products::kIeee,                                                                \
       applicable,                                                                     \
       no_workspace,                                                                   \
       cost<dtype, Direction::kDgrad>,                                                 \
       launch_conv_dgrad_direct_plain<dtype, layout>},                                 \
  {                                                                                    \
    "wgrad_" dtype_name "_" layout_name "_analytic", Direction::kWgrad, dtype, layout, \
        Products::kIeee, applicable, wgrad_workspace<acc_t<scalar_of<dtype>>>,         \
        cost<dtype, Direction::kWgrad>, launch_conv_wgrad_direct_plain<dtype, layout>  \
  }
#define PLAIN_TABLE(dtype, dtype_name)                  \
  PLAIN_ROWS(dtype, dtype_name, Layout::kNCHW, "nchw"), \
      PLAIN_ROWS(dtype, dtype_name, Layout::kNHWC, "nhwc")

const ConvInstance kInstances[] = {
    PLAIN_TABLE(DType::kFloat32, "f32"),
    PLAIN_TABLE(DType::kFloat64, "f64"),
    PLAIN_TABLE(DType::kBFloat16, "bf16"),
    PLAIN_TABLE(DType::kFloat16, "f16"),
};

}  // namespace

extern const ConvAlgorithm conv_direct_plain = {"direct_plain", kInstances,
                                                sizeof(kInstances) / sizeof(kInstances[0])};

}  // namespace fastconv::cuda
