// Table of the depthwise algorithm: one filter of its own per channel (groups == C). Kernels of
// compile-time filter size for 3x3, 5x5 and 7x7 with stride 1 and 2 ("window" in NHWC, "planes" in
// NCHW), and one per direction and layout for every other problem ("any").
#include "conv_depthwise.h"

namespace fastconv::cuda {
namespace depthwise {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

std::string of_axes(const int64_t (&values)[3]) {
  return "[" + text(values[0]) + ", " + text(values[1]) + ", " + text(values[2]) + "]";
}

}  // namespace

std::string refuse(const ConvProblem& p) {
  if (p.groups != p.C)
    return "depthwise takes one channel per group, got C=" + text(p.C) +
           ", groups=" + text(p.groups);
  for (int i = 0; i < 3; ++i)
    if (p.in[i] + 2 * p.padding[i] > kMaxCount || p.out[i] > kMaxCount ||
        (p.filter[i] - 1) * p.dilation[i] > kMaxCount || p.stride[i] > kMaxCount)
      return "depthwise takes extents below 2^31, got input " + of_axes(p.in) + ", padding " +
             of_axes(p.padding) + ", filter " + of_axes(p.filter);
  if (p.N > kMaxCount || p.K > kMaxCount || p.filter_size() > kMaxCount / 64)
    return "depthwise takes N and K below 2^31 and 2^25 taps, got N=" + text(p.N) +
           ", K=" + text(p.K) + ", filter " + of_axes(p.filter);
  return {};
}

std::string refuse_window(const ConvProblem& p, int r, int stride) {
  std::string reason = refuse(p);
  if (!reason.empty()) return reason;
  const std::string shape = text(r) + "x" + text(r);
  if (p.rank != 2) return shape + " taps are for rank 2, got rank " + text(p.rank);
  if (p.filter[1] != r || p.filter[2] != r)
    return "this kernel has " + shape + " taps, got " + text(p.filter[1]) + "x" + text(p.filter[2]);
  if (p.stride[1] != stride || p.stride[2] != stride)
    return "this kernel has stride " + text(stride) + ", got " + of_axes(p.stride);
  if (p.dilation[1] != 1 || p.dilation[2] != 1)
    return "this kernel has dilation 1, got " + of_axes(p.dilation);
  if (p.K != p.C)
    return "this kernel has one filter per channel, got C=" + text(p.C) + ", K=" + text(p.K);
  // So that the numbers of blocks, rows and planes stay below 2^31.
  const double rows = double(p.N) * double(std::max(p.in[1], p.out[1]));
  const double elements = rows * double(std::max(p.in[2], p.out[2])) * double(p.C);
  if (double(p.N) * double(p.C) > double(kMaxCount) || rows > double(kMaxCount) ||
      elements > double(int64_t{1} << 36))
    return "this kernel takes fewer than 2^31 planes and rows and 2^36 elements, got N=" +
           text(p.N) + ", C=" + text(p.C) + ", input " + of_axes(p.in);
  return {};
}

std::string refuse_channels(const ConvProblem& p, int vector) {
  if (p.C % vector != 0)
    return "this kernel takes 16 bytes of channels, C divisible by " + text(vector) +
           ", got C=" + text(p.C);
  const int64_t rows = p.N * std::max(p.in[1], p.out[1]);
  if (double(rows) * double(std::max(p.in[2], p.out[2]) / 2 + 1) > double(kMaxCount))
    return "this kernel takes fewer than 2^32 pixels, got N=" + text(p.N) + ", input " +
           of_axes(p.in);
  return {};
}

double estimate(const ConvProblem& p, const Device& device, int64_t scalar_bytes, double bytes,
                double efficiency, double threads, int launches) {
  const DeviceRates rates = device_rates(device);
  const double once =
      double(scalar_bytes) * (double(p.N) * p.C * p.in_size() + double(p.K) * p.filter_size() +
                              double(p.N) * p.K * p.out_size());
  const double filled = std::min(1.0, threads / (device.sm_count * 512.0));
  return launches * rates.launch_s + std::max((once + bytes) / (0.85 * rates.bytes_per_s),
                                              2 * p.macs() / (efficiency * rates.fma_flops)) /
                                         filled;
}

namespace {

int64_t no_workspace(const ConvProblem&, const Device&) { return 0; }

// Elements of what a direction writes, or (wgrad) walks over.
double walked(const ConvProblem& p, Direction direction) {
  return direction == Direction::kDgrad ? double(p.N) * p.C * p.in_size()
                                        : double(p.N) * p.K * p.out_size();
}

// Multiply-adds of all instructions, from the machine code of the main loops: per output R*R
// multiply-adds and so many others. Not measured on a GPU.
constexpr double window_efficiency(int r, bool half) {
  return r * r / (r * r * (half ? 1.6 : 1.3) + 7);
}
constexpr double planes_efficiency(int r) { return r * r / (r * r * 1.4 + 27); }

template <DType dtype>
constexpr int vector_of = 16 / int(sizeof(scalar_of<dtype>));

template <DType dtype, int R, int STRIDE>
std::string applicable_window(const ConvProblem& p) {
  std::string reason = refuse_window(p, R, STRIDE);
  return reason.empty() ? refuse_channels(p, vector_of<dtype>) : reason;
}

template <int R, int STRIDE>
std::string applicable_planes(const ConvProblem& p) {
  return refuse_window(p, R, STRIDE);
}

template <DType dtype, Direction direction, int R>
double window_cost(const ConvProblem& p, const Device& device) {
  constexpr int bytes = sizeof(scalar_of<dtype>);
  constexpr bool wgrad = direction == Direction::kWgrad;
  const double partial = wgrad ? 8.0 * p.C * R * R * 8 : 0;
  return estimate(p, device, bytes, partial, window_efficiency(R, bytes == 2),
                  walked(p, direction) / (vector_of<dtype> * 4), wgrad ? 2 : 1);
}

template <DType dtype, Direction direction, int R>
double planes_cost(const ConvProblem& p, const Device& device) {
  constexpr bool wgrad = direction == Direction::kWgrad;
  const double partial = wgrad ? 8.0 * p.C * R * R * 8 : 0;
  return estimate(p, device, sizeof(scalar_of<dtype>), partial, planes_efficiency(R),
                  walked(p, direction) / 8, wgrad ? 2 : 1);
}

template <DType dtype, Direction direction, Layout layout>
double any_cost(const ConvProblem& p, const Device& device) {
  constexpr bool wgrad = direction == Direction::kWgrad;
  const int64_t scalar_bytes = sizeof(scalar_of<dtype>);
  const bool vectors = layout == Layout::kNHWC && p.K == p.C && p.C % vector_of<dtype> == 0;
  // In wgrad x and dy are read once per eight taps.
  const double passes = wgrad ? double(ceil_div(p.filter_size(), 8)) : 1;
  const double bytes = (passes - 1) * double(scalar_bytes) *
                       (double(p.N) * p.C * p.in_size() + double(p.N) * p.K * p.out_size());
  return estimate(p, device, scalar_bytes, bytes, vectors ? 0.2 : 0.05,
                  walked(p, direction) / (4 * (vectors ? vector_of<dtype> : 1)), wgrad ? 2 : 1);
}

#define FC_ROW(direction, dtype, layout, name, applicable, workspace, cost, launch, stats) \
  {                                                                                        \
      name,                                                                                \
      Direction::direction,                                                                \
      dtype,                                                                               \
      layout,                                                                              \
      Products::kIeee,                                                                     \
      applicable,                                                                          \
      workspace,                                                                           \
      cost,                                                                                \
      launch,                                                                              \
      stats},

#define FC_WINDOW(dtype, dtype_name, r, s)                                                       \
  FC_ROW(kFprop, dtype, Layout::kNHWC, "fprop_" dtype_name "_nhwc_window" #r "_s" #s,            \
         (applicable_window<dtype, r, s>), no_workspace,                                         \
         (window_cost<dtype, Direction::kFprop, r>),                                             \
         (launch_window<dtype, Direction::kFprop, r, s>), (window_stats_workspace<dtype, r, s>)) \
  FC_ROW(kDgrad, dtype, Layout::kNHWC, "dgrad_" dtype_name "_nhwc_window" #r "_s" #s,            \
         (applicable_window<dtype, r, s>), no_workspace,                                         \
         (window_cost<dtype, Direction::kDgrad, r>),                                             \
         (launch_window<dtype, Direction::kDgrad, r, s>), nullptr)                               \
  FC_ROW(kWgrad, dtype, Layout::kNHWC, "wgrad_" dtype_name "_nhwc_window" #r "_s" #s,            \
         (applicable_window<dtype, r, s>), (window_wgrad_workspace<dtype, r, s>),                \
         (window_cost<dtype, Direction::kWgrad, r>),                                             \
         (launch_window<dtype, Direction::kWgrad, r, s>), nullptr)                               \
  FC_ROW(kFprop, dtype, Layout::kNCHW, "fprop_" dtype_name "_nchw_planes" #r "_s" #s,            \
         (applicable_planes<r, s>), no_workspace, (planes_cost<dtype, Direction::kFprop, r>),    \
         (launch_planes<dtype, Direction::kFprop, r, s>), (planes_stats_workspace<dtype, r, s>)) \
  FC_ROW(kDgrad, dtype, Layout::kNCHW, "dgrad_" dtype_name "_nchw_planes" #r "_s" #s,            \
         (applicable_planes<r, s>), no_workspace, (planes_cost<dtype, Direction::kDgrad, r>),    \
         (launch_planes<dtype, Direction::kDgrad, r, s>), nullptr)                               \
  FC_ROW(kWgrad, dtype, Layout::kNCHW, "wgrad_" dtype_name "_nchw_planes" #r "_s" #s,            \
         (applicable_planes<r, s>), (planes_wgrad_workspace<dtype, r, s>),                       \
         (planes_cost<dtype, Direction::kWgrad, r>),                                             \
         (launch_planes<dtype, Direction::kWgrad, r, s>), nullptr)

#define FC_ANY(dtype, dtype_name, layout, layout_name)                                            \
  FC_ROW(kFprop, dtype, layout, "fprop_" dtype_name "_" layout_name "_any", refuse, no_workspace, \
         (any_cost<dtype, Direction::kFprop, layout>),                                            \
         (launch_any<dtype, Direction::kFprop, layout>), (any_stats_workspace<dtype, layout>))    \
  FC_ROW(kDgrad, dtype, layout, "dgrad_" dtype_name "_" layout_name "_any", refuse, no_workspace, \
         (any_cost<dtype, Direction::kDgrad, layout>),                                            \
         (launch_any<dtype, Direction::kDgrad, layout>), nullptr)                                 \
  FC_ROW(kWgrad, dtype, layout, "wgrad_" dtype_name "_" layout_name "_any", refuse,               \
         (any_wgrad_workspace<dtype, layout>), (any_cost<dtype, Direction::kWgrad, layout>),      \
         (launch_any<dtype, Direction::kWgrad, layout>), nullptr)

#define FC_DTYPE(dtype, dtype_name)                \
  FC_WINDOW(dtype, dtype_name, 3, 1)               \
  FC_WINDOW(dtype, dtype_name, 3, 2)               \
  FC_WINDOW(dtype, dtype_name, 5, 1)               \
  FC_WINDOW(dtype, dtype_name, 5, 2)               \
  FC_WINDOW(dtype, dtype_name, 7, 1)               \
  FC_WINDOW(dtype, dtype_name, 7, 2)               \
  FC_ANY(dtype, dtype_name, Layout::kNCHW, "nchw") \
  FC_ANY(dtype, dtype_name, Layout::kNHWC, "nhwc")

const ConvInstance kInstances[] = {FC_DTYPE(DType::kFloat32, "f32") FC_DTYPE(
    DType::kBFloat16, "bf16") FC_DTYPE(DType::kFloat16, "f16")};

}  // namespace
}  // namespace depthwise

extern const ConvAlgorithm conv_depthwise = {
    "depthwise", depthwise::kInstances,
    sizeof(depthwise::kInstances) / sizeof(depthwise::kInstances[0])};

}  // namespace fastconv::cuda
