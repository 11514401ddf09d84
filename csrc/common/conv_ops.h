// The three convolution ops on the stable ABI, the same for every backend: geometry, dtypes, new
// results, and the empty cases. A backend computes what is left.
//
//   struct Backend { static void run(const char* op, ConvOperands&, const std::string& algo); };
//
// Texts here are a backstop; the Python layer has validated with PyTorch's own.
#pragma once
#include <optional>
#include <string>

#include "epilogue.h"
#include "packed_geometry.h"

namespace fastconv {

// fprop reads x, w, bias and writes y; dgrad reads y (= dy), w and writes x (= dx);
// wgrad reads x, y (= dy) and writes w (= dw). Nothing is zero-sized.
struct ConvOperands {
  ConvProblem problem;
  DType dtype;
  Direction direction;
  Tensor x, w, y;
  std::optional<Tensor> bias;  // contiguous, [K]
  bool channels_last;          // the format of the result, which is dense
  // fprop only; with y_channels set, y is a channel slice instead.
  Epilogue epilogue{};
  std::optional<Tensor> residual{};  // keeps epilogue.residual alive
};

// What fprop is told, checked; y is still x.
inline ConvOperands fprop_operands(const char* op, const Tensor& x, const Tensor& w,
                                   std::optional<Tensor> bias, const IntList& stride,
                                   const IntList& padding, const IntList& dilation,
                                   int64_t groups) {
  const ConvProblem p =
      make_conv_problem(sizes_of(x), sizes_of(w), stride, padding, dilation, groups);
  const DType dtype = dtype_of(x, op);
  STD_TORCH_CHECK(w.scalar_type() == x.scalar_type(), op, ": input and weight differ in dtype");
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.K, op, ": bias must have K=", p.K,
                    " elements");
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type(), op, ": input and bias differ in dtype");
    if (!bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
  }
  return {p, dtype, Direction::kFprop, x, w, x, bias, is_channels_last(x) || is_channels_last(w)};
}

template <class Backend>
struct ConvOps {
  static Tensor fprop_packed(const Tensor& x, const Tensor& w, std::optional<Tensor> bias,
                             int64_t moves, int64_t groups, std::string algo) {
    const Moves m(moves, spatial_rank(x));
    return fprop(x, w, std::move(bias), m.stride, m.padding, m.dilation, groups, std::move(algo));
  }

  static Tensor dgrad_packed(const Tensor& dy, const Tensor& w, int64_t moves, int64_t input,
                             int64_t groups, bool channels_last, std::string algo) {
    const int rank = spatial_rank(dy);
    spatial_rank(w);
    const Moves m(moves, rank);
    return dgrad(dy, w, unpacked_size({dy.size(0), w.size(1) * groups}, input, rank), m.stride,
                 m.padding, m.dilation, groups, channels_last, std::move(algo));
  }

  static Tensor wgrad_packed(const Tensor& dy, const Tensor& x, int64_t moves, int64_t filter,
                             int64_t groups, bool channels_last, std::string algo) {
    const int rank = spatial_rank(dy);
    spatial_rank(x);
    STD_TORCH_CHECK(groups > 0, "conv_wgrad: groups must be positive, got ", groups);
    const Moves m(moves, rank);
    return wgrad(dy, x, unpacked_size({dy.size(1), x.size(1) / groups}, filter, rank), m.stride,
                 m.padding, m.dilation, groups, channels_last, std::move(algo));
  }

  static Tensor fprop(const Tensor& x, const Tensor& w, std::optional<Tensor> bias, IntList stride,
                      IntList padding, IntList dilation, int64_t groups, std::string algo) {
    constexpr const char* op = "conv_fprop";
    ConvOperands o = fprop_operands(op, x, w, std::move(bias), stride, padding, dilation, groups);
    o.y = empty_dense(x, out_sizes(o.problem), o.channels_last);
    if (o.y.numel() == 0) return o.y;
    if (o.problem.C == 0) {
      torch::stable::zero_(o.y);  // an empty sum; PyTorch refuses C=0 with K>0 before it gets here
      return o.y;
    }
    Backend::run(op, o, algo);
    return o.y;
  }

  static Tensor dgrad(const Tensor& dy, const Tensor& w, IntList input_size, IntList stride,
                      IntList padding, IntList dilation, int64_t groups, bool channels_last,
                      std::string algo) {
    constexpr const char* op = "conv_dgrad";
    const ConvProblem p =
        make_conv_problem(input_size, sizes_of(w), stride, padding, dilation, groups);
    const DType dtype = dtype_of(dy, op);
    STD_TORCH_CHECK(w.scalar_type() == dy.scalar_type(), op, ": dy and weight differ in dtype");
    STD_TORCH_CHECK(sizes_of(dy) == out_sizes(p), op, ": dy does not have the output's shape");
    channels_last = channels_last && p.rank > 1;
    Tensor dx = empty_dense(dy, input_size, channels_last);
    if (dx.numel() == 0) return dx;
    if (dy.numel() == 0) {
      torch::stable::zero_(dx);
      return dx;
    }
    ConvOperands operands{p, dtype, Direction::kDgrad, dx, w, dy, std::nullopt, channels_last};
    Backend::run(op, operands, algo);
    return dx;
  }

  static Tensor wgrad(const Tensor& dy, const Tensor& x, IntList weight_size, IntList stride,
                      IntList padding, IntList dilation, int64_t groups, bool channels_last,
                      std::string algo) {
    constexpr const char* op = "conv_wgrad";
    const ConvProblem p =
        make_conv_problem(sizes_of(x), weight_size, stride, padding, dilation, groups);
    const DType dtype = dtype_of(x, op);
    STD_TORCH_CHECK(x.scalar_type() == dy.scalar_type(), op, ": dy and input differ in dtype");
    STD_TORCH_CHECK(sizes_of(dy) == out_sizes(p), op, ": dy does not have the output's shape");
    channels_last = channels_last && p.rank > 1;
    Tensor dw = empty_dense(dy, weight_size, channels_last);
    if (dw.numel() == 0) return dw;
    if (dy.numel() == 0 || x.numel() == 0) {
      torch::stable::zero_(dw);
      return dw;
    }
    ConvOperands operands{p, dtype, Direction::kWgrad, x, dw, dy, std::nullopt, channels_last};
    Backend::run(op, operands, algo);
    return dw;
  }
};

// Lists have one entry per spatial axis; input_size and weight_size are the full shapes.
#define FC_DEFINE_CONV_OPS(m)                                                                 \
  m.def(                                                                                      \
      "conv_fprop(Tensor x, Tensor w, Tensor? bias, SymInt[] stride, SymInt[] padding, "      \
      "SymInt[] dilation, SymInt groups, str algo) -> Tensor");                               \
  m.def(                                                                                      \
      "conv_fprop.packed(Tensor x, Tensor w, Tensor? bias, int moves, int groups, str algo) " \
      "-> Tensor");                                                                           \
  m.def(                                                                                      \
      "conv_dgrad(Tensor dy, Tensor w, SymInt[] input_size, SymInt[] stride, "                \
      "SymInt[] padding, SymInt[] dilation, SymInt groups, bool channels_last, str algo) "    \
      "-> Tensor");                                                                           \
  m.def(                                                                                      \
      "conv_dgrad.packed(Tensor dy, Tensor w, int moves, int input, int groups, "             \
      "bool channels_last, str algo) -> Tensor");                                             \
  m.def(                                                                                      \
      "conv_wgrad.packed(Tensor dy, Tensor x, int moves, int filter, int groups, "            \
      "bool channels_last, str algo) -> Tensor");                                             \
  m.def(                                                                                      \
      "conv_wgrad(Tensor dy, Tensor x, SymInt[] weight_size, SymInt[] stride, "               \
      "SymInt[] padding, SymInt[] dilation, SymInt groups, bool channels_last, str algo) "    \
      "-> Tensor")

// Registers the ops for one dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define FC_IMPL_CONV_OPS(m, Backend)                                                 \
  m.impl("conv_fprop", TORCH_BOX(&fastconv::ConvOps<Backend>::fprop));               \
  m.impl("conv_fprop.packed", TORCH_BOX(&fastconv::ConvOps<Backend>::fprop_packed)); \
  m.impl("conv_dgrad", TORCH_BOX(&fastconv::ConvOps<Backend>::dgrad));               \
  m.impl("conv_dgrad.packed", TORCH_BOX(&fastconv::ConvOps<Backend>::dgrad_packed)); \
  m.impl("conv_wgrad", TORCH_BOX(&fastconv::ConvOps<Backend>::wgrad));               \
  m.impl("conv_wgrad.packed", TORCH_BOX(&fastconv::ConvOps<Backend>::wgrad_packed))

}  // namespace fastconv
