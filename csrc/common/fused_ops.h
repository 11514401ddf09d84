// Convolution with an epilogue, and the passes of batch normalisation with activation, on the
// stable ABI: geometry, dtypes, new results, and the empty cases. A backend computes what is left.
//
//   struct Backend : the convolutions' (conv_ops.h), and {
//     // Fills mean and m2 beside y where the algorithm can, else returns false.
//     static bool run_stats(const char* op, ConvOperands&, const std::string& algo,
//                           Tensor& mean, Tensor& m2);
//     static void norm(const char* op, NormPass, NormCall&, const Tensor& on);
//   };
//
// Activations are the numbers of epilogue.h. Statistics, weights and biases of the normalisation
// have acc_t: float64 for float64, else float32.
#pragma once
#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "conv_ops.h"
#include "norm_call.h"

namespace fastconv {

inline ScalarType statistics_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_statistics(const Tensor& like, int64_t K) {
  const bool wide = statistics_type(like) == ScalarType::Double;
  return empty_vector(like, K, wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

inline Epilogue epilogue_of(const char* op, int64_t activation, double slope, bool residual_after) {
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, op, ": unknown activation ",
                  activation);
  Epilogue e;
  e.activation = static_cast<Activation>(activation);
  e.slope = slope;
  e.residual_after = residual_after;
  return e;
}

// Of how many channels the dense tensor in this layout has that t is a slice of; 0: t is dense
// itself; -1: neither.
inline int64_t sliced_channels(const Tensor& t, bool channels_last) {
  const IntList sizes = sizes_of(t), want = dense_strides(sizes, channels_last);
  const auto have = t.strides();
  int64_t size = 1, pitch = 0;
  bool same = true;
  for (size_t i = 0; i < want.size(); ++i) {
    if (i >= 2) size *= sizes[i];
    same = same && (sizes[i] <= 1 || have[i] == want[i]);
  }
  if (same) return 0;
  // What one more pixel (channels last) or one more image adds, over what it has of this tensor.
  const int dim = static_cast<int>(want.size());
  int axis = channels_last ? dim - 1 : 0;
  while (channels_last && axis >= 2 && sizes[axis] <= 1) --axis;
  if (channels_last && axis < 2) axis = 0;
  const int64_t unit = channels_last ? (axis == 0 ? size : 1) : size;
  if (sizes[axis] <= 1 || have[axis] % unit != 0) return -1;
  pitch = have[axis] / unit;
  if (pitch < sizes[1]) return -1;
  IntList whole = sizes;
  whole[1] = pitch;
  const IntList sliced = dense_strides(whole, channels_last);
  for (int i = 0; i < dim; ++i)
    if (sizes[i] > 1 && have[i] != sliced[i]) return -1;
  return pitch;
}

template <class Backend>
struct FusedOps {
  // --- convolution

  static Tensor conv_epilogue(const Tensor& x, const Tensor& w, std::optional<Tensor> bias,
                              std::optional<Tensor> residual, IntList stride, IntList padding,
                              IntList dilation, int64_t groups, int64_t activation, double slope,
                              bool residual_after, std::string algo) {
    constexpr const char* op = "conv_epilogue_fprop";
    ConvOperands o = fprop_operands(op, x, w, std::move(bias), stride, padding, dilation, groups);
    o.y = empty_dense(x, out_sizes(o.problem), o.channels_last);
    set_epilogue(op, o, std::move(residual), activation, slope, residual_after);
    run(op, o, algo);
    return o.y;
  }

  // Numbers where the other overload has lists: parsing them costs a small call microseconds.
  static Tensor conv_epilogue_packed(const Tensor& x, const Tensor& w, std::optional<Tensor> bias,
                                     std::optional<Tensor> residual, int64_t moves, int64_t groups,
                                     int64_t activation, double slope, bool residual_after,
                                     std::string algo) {
    const Moves m(moves, spatial_rank(x));
    return conv_epilogue(x, w, std::move(bias), std::move(residual), m.stride, m.padding,
                         m.dilation, groups, activation, slope, residual_after, std::move(algo));
  }
  static void conv_epilogue_into_packed(const Tensor& x, const Tensor& w,
                                        std::optional<Tensor> bias, std::optional<Tensor> residual,
                                        Tensor out, int64_t moves, int64_t groups,
                                        int64_t activation, double slope, bool residual_after,
                                        std::string algo) {
    const Moves m(moves, spatial_rank(x));
    conv_epilogue_into(x, w, std::move(bias), std::move(residual), std::move(out), m.stride,
                       m.padding, m.dilation, groups, activation, slope, residual_after,
                       std::move(algo));
  }

  // `out` is y: dense, or a channel slice of a dense tensor, in x's layout.
  static void conv_epilogue_into(const Tensor& x, const Tensor& w, std::optional<Tensor> bias,
                                 std::optional<Tensor> residual, Tensor out, IntList stride,
                                 IntList padding, IntList dilation, int64_t groups,
                                 int64_t activation, double slope, bool residual_after,
                                 std::string algo) {
    constexpr const char* op = "conv_epilogue_into";
    ConvOperands o = fprop_operands(op, x, w, std::move(bias), stride, padding, dilation, groups);
    STD_TORCH_CHECK(sizes_of(out) == out_sizes(o.problem), op,
                    ": out does not have the output's shape");
    STD_TORCH_CHECK(out.scalar_type() == x.scalar_type(), op, ": out and input differ in dtype");
    const int64_t pitch = sliced_channels(out, o.channels_last);
    STD_TORCH_CHECK(pitch >= 0, op, ": out is no channel slice of a dense tensor in the layout ",
                    o.channels_last ? "channels_last" : "contiguous");
    o.y = out;
    set_epilogue(op, o, std::move(residual), activation, slope, residual_after);
    o.epilogue.y_channels = pitch;
    run(op, o, algo);
  }

  static std::tuple<Tensor, Tensor, Tensor> conv_stats(const Tensor& x, const Tensor& w,
                                                       std::optional<Tensor> bias, IntList stride,
                                                       IntList padding, IntList dilation,
                                                       int64_t groups, std::string algo) {
    constexpr const char* op = "conv_stats_fprop";
    ConvOperands o = fprop_operands(op, x, w, std::move(bias), stride, padding, dilation, groups);
    o.y = empty_dense(x, out_sizes(o.problem), o.channels_last);
    Tensor mean = empty_statistics(x, o.problem.K), m2 = empty_statistics(x, o.problem.K);
    if (o.y.numel() == 0 || o.problem.C == 0) {
      if (o.y.numel() > 0) torch::stable::zero_(o.y);
      torch::stable::zero_(mean);
      torch::stable::zero_(m2);
    } else if (!Backend::run_stats(op, o, algo, mean, m2)) {
      NormCall c = norm_call(op, o.y, o.channels_last);
      c.out_mean = mean.mutable_data_ptr();
      c.out_m2 = m2.mutable_data_ptr();
      Backend::norm(op, NormPass::kStats, c, o.y);
    }
    return {o.y, mean, m2};
  }

  // --- batch normalisation with activation

  static std::tuple<Tensor, Tensor> stats(const Tensor& y) {
    constexpr const char* op = "norm_act_stats";
    check_features(op, y);
    Tensor mean = empty_statistics(y, y.size(1)), m2 = empty_statistics(y, y.size(1));
    if (y.numel() == 0) {
      torch::stable::zero_(mean);
      torch::stable::zero_(m2);
      return {mean, m2};
    }
    const bool channels_last = is_channels_last(y);
    const Tensor d = dense(y, channels_last);
    NormCall c = norm_call(op, d, channels_last);
    c.out_mean = mean.mutable_data_ptr();
    c.out_m2 = m2.mutable_data_ptr();
    Backend::norm(op, NormPass::kStats, c, d);
    return {mean, m2};
  }

  static Tensor fprop(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                      std::optional<Tensor> weight, std::optional<Tensor> bias,
                      std::optional<Tensor> residual, int64_t activation, double slope,
                      bool residual_after) {
    constexpr const char* op = "norm_act_fprop";
    check_features(op, y);
    const bool channels_last = is_channels_last(y);
    Tensor z = empty_dense(y, sizes_of(y), channels_last);
    if (z.numel() == 0) return z;
    const Tensor d = dense(y, channels_last);
    NormCall c = norm_call(op, d, channels_last);
    const Kept kept =
        set_norm(op, c, d, mean, rstd, weight, bias, residual, activation, slope, residual_after);
    c.z = z.mutable_data_ptr();
    Backend::norm(op, NormPass::kFprop, c, d);
    return z;
  }

  // z = the epilogue of y, into `out`: y itself, or a channel slice in y's layout.
  static void epilogue_into(const Tensor& y, std::optional<Tensor> residual, Tensor out,
                            int64_t activation, double slope, bool residual_after) {
    constexpr const char* op = "epilogue_into";
    check_features(op, y);
    STD_TORCH_CHECK(sizes_of(out) == sizes_of(y) && out.scalar_type() == y.scalar_type(), op,
                    ": out must have the input's shape and dtype");
    if (y.numel() == 0) return;
    const bool channels_last = is_channels_last(y);
    const int64_t pitch = sliced_channels(out, channels_last);
    STD_TORCH_CHECK(pitch >= 0, op, ": out is no channel slice of a dense tensor in y's layout");
    const Tensor d = dense(y, channels_last);
    NormCall c = norm_call(op, d, channels_last);
    c.epilogue = epilogue_of(op, activation, slope, residual_after);
    const std::optional<Tensor> r = dense_residual(op, d, residual, channels_last);
    if (r.has_value()) c.epilogue.residual = r->const_data_ptr();
    c.epilogue.y_channels = pitch;
    c.z = out.mutable_data_ptr();
    Backend::norm(op, NormPass::kFprop, c, d);
  }

  static std::tuple<Tensor, Tensor> sums(const Tensor& dz, const Tensor& y, const Tensor& mean,
                                         const Tensor& rstd, std::optional<Tensor> weight,
                                         std::optional<Tensor> bias, std::optional<Tensor> residual,
                                         int64_t activation, double slope, bool residual_after) {
    constexpr const char* op = "norm_act_sums";
    check_features(op, y);
    const int64_t K = y.size(1);
    Tensor sum_g = empty_statistics(y, K), sum_gy = empty_statistics(y, K);
    if (y.numel() == 0) {
      torch::stable::zero_(sum_g);
      torch::stable::zero_(sum_gy);
      return {sum_g, sum_gy};
    }
    const bool channels_last = is_channels_last(y);
    const Tensor d = dense(y, channels_last), from = gradient(op, dz, d, channels_last);
    NormCall c = norm_call(op, d, channels_last);
    const Kept kept =
        set_norm(op, c, d, mean, rstd, weight, bias, residual, activation, slope, residual_after);
    c.dz = from.const_data_ptr();
    c.out_sum_g = sum_g.mutable_data_ptr();
    c.out_sum_gy = sum_gy.mutable_data_ptr();
    Backend::norm(op, NormPass::kSums, c, d);
    return {sum_g, sum_gy};
  }

  // (dy, dresidual); dresidual is empty where it is not asked for. Without sums: evaluation.
  static std::tuple<Tensor, Tensor> dgrad(const Tensor& dz, const Tensor& y, const Tensor& mean,
                                          const Tensor& rstd, std::optional<Tensor> weight,
                                          std::optional<Tensor> bias,
                                          std::optional<Tensor> residual,
                                          std::optional<Tensor> sum_g, std::optional<Tensor> sum_gy,
                                          double count, int64_t activation, double slope,
                                          bool residual_after, bool want_residual) {
    constexpr const char* op = "norm_act_dgrad";
    check_features(op, y);
    const bool channels_last = is_channels_last(y);
    Tensor dy = empty_dense(y, sizes_of(y), channels_last);
    Tensor dresidual =
        empty_dense(y, want_residual ? sizes_of(y) : IntList{0}, channels_last && want_residual);
    if (dy.numel() == 0) return {dy, dresidual};
    const Tensor d = dense(y, channels_last), from = gradient(op, dz, d, channels_last);
    NormCall c = norm_call(op, d, channels_last);
    const Kept kept =
        set_norm(op, c, d, mean, rstd, weight, bias, residual, activation, slope, residual_after);
    STD_TORCH_CHECK(sum_g.has_value() == sum_gy.has_value(), op, ": one sum without the other");
    if (sum_g.has_value()) {
      check_statistics(op, d, *sum_g);
      check_statistics(op, d, *sum_gy);
      c.sum_g = sum_g->const_data_ptr();
      c.sum_gy = sum_gy->const_data_ptr();
    }
    c.count = count;
    c.dz = from.const_data_ptr();
    c.dy = dy.mutable_data_ptr();
    if (want_residual) c.dresidual = dresidual.mutable_data_ptr();
    Backend::norm(op, NormPass::kDgrad, c, d);
    return {dy, dresidual};
  }

 private:
  // Dense copies that have to outlive the call.
  struct Kept {
    std::optional<Tensor> residual;
  };

  static void check_features(const char* op, const Tensor& y) {
    STD_TORCH_CHECK(y.dim() >= 2 && y.dim() <= 5, op, ": expected 2 to 5 dimensions, got ",
                    y.dim());
    dtype_of(y, op);
  }

  static void check_statistics(const char* op, const Tensor& y, const Tensor& s) {
    STD_TORCH_CHECK(s.dim() == 1 && s.size(0) == y.size(1) && s.is_contiguous() &&
                        s.scalar_type() == statistics_type(y),
                    op, ": statistics must be contiguous, one per channel, ",
                    statistics_type(y) == ScalarType::Double ? "float64" : "float32");
  }

  static std::optional<Tensor> dense_residual(const char* op, const Tensor& y,
                                              const std::optional<Tensor>& residual,
                                              bool channels_last) {
    if (!residual.has_value()) return std::nullopt;
    STD_TORCH_CHECK(sizes_of(*residual) == sizes_of(y), op,
                    ": residual does not have the output's shape");
    STD_TORCH_CHECK(residual->scalar_type() == y.scalar_type(), op,
                    ": residual and input differ in dtype");
    return dense(*residual, channels_last);
  }

  static Tensor gradient(const char* op, const Tensor& dz, const Tensor& y, bool channels_last) {
    STD_TORCH_CHECK(sizes_of(dz) == sizes_of(y) && dz.scalar_type() == y.scalar_type(), op,
                    ": dz must have y's shape and dtype");
    return dense(dz, channels_last);
  }

  static NormCall norm_call(const char* op, const Tensor& y, bool channels_last) {
    NormCall c{};
    c.N = y.size(0);
    c.K = y.size(1);
    c.size = 1;
    for (int64_t i = 2; i < y.dim(); ++i) c.size *= y.size(i);
    c.channels_last = channels_last;
    c.dtype = dtype_of(y, op);
    c.y = y.const_data_ptr();
    return c;
  }

  static Kept set_norm(const char* op, NormCall& c, const Tensor& y, const Tensor& mean,
                       const Tensor& rstd, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                       int64_t activation, double slope, bool residual_after) {
    check_statistics(op, y, mean);
    check_statistics(op, y, rstd);
    c.mean = mean.const_data_ptr();
    c.rstd = rstd.const_data_ptr();
    for (const auto* t : {&weight, &bias}) {
      if (!t->has_value()) continue;
      check_statistics(op, y, **t);
      (t == &weight ? c.weight : c.bias) = (*t)->const_data_ptr();
    }
    c.epilogue = epilogue_of(op, activation, slope, residual_after);
    Kept kept{dense_residual(op, y, residual, c.channels_last)};
    if (kept.residual.has_value()) c.epilogue.residual = kept.residual->const_data_ptr();
    return kept;
  }

  static void set_epilogue(const char* op, ConvOperands& o, std::optional<Tensor> residual,
                           int64_t activation, double slope, bool residual_after) {
    o.epilogue = epilogue_of(op, activation, slope, residual_after);
    o.residual = dense_residual(op, o.y, residual, o.channels_last);
    if (o.residual.has_value() && o.y.numel() > 0)
      o.epilogue.residual = o.residual->const_data_ptr();
  }

  static void run(const char* op, ConvOperands& o, const std::string& algo) {
    if (o.y.numel() == 0) return;
    STD_TORCH_CHECK(o.problem.C > 0, op, ": a convolution of no channels has no epilogue");
    Backend::run(op, o, algo);
  }
};

#define FC_CONV_LISTS "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
#define FC_ACTIVATION "int activation, float slope, bool residual_after"
#define FC_NORM "Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, Tensor? residual"
#define FC_DEFINE_FUSED_OPS(m)                                                                     \
  m.def("conv_epilogue_fprop(Tensor x, Tensor w, Tensor? bias, Tensor? residual, " FC_CONV_LISTS   \
        ", " FC_ACTIVATION ", str algo) -> Tensor");                                               \
  m.def(                                                                                           \
      "conv_epilogue_into(Tensor x, Tensor w, Tensor? bias, Tensor? residual, Tensor(a!) "         \
      "out, " FC_CONV_LISTS ", " FC_ACTIVATION ", str algo) -> ()");                               \
  m.def(                                                                                           \
      "conv_epilogue_fprop.packed(Tensor x, Tensor w, Tensor? bias, Tensor? residual, int moves, " \
      "int groups, " FC_ACTIVATION ", str algo) -> Tensor");                                       \
  m.def(                                                                                           \
      "conv_epilogue_into.packed(Tensor x, Tensor w, Tensor? bias, Tensor? residual, "             \
      "Tensor(a!) out, int moves, int groups, " FC_ACTIVATION ", str algo) -> ()");                \
  m.def("conv_stats_fprop(Tensor x, Tensor w, Tensor? bias, " FC_CONV_LISTS                        \
        ", str algo) -> (Tensor, Tensor, Tensor)");                                                \
  m.def("norm_act_stats(Tensor y) -> (Tensor, Tensor)");                                           \
  m.def("norm_act_fprop(Tensor y, " FC_NORM ", " FC_ACTIVATION ") -> Tensor");                     \
  m.def("epilogue_into(Tensor y, Tensor? residual, Tensor(a!) out, " FC_ACTIVATION ") -> ()");     \
  m.def("norm_act_sums(Tensor dz, Tensor y, " FC_NORM ", " FC_ACTIVATION ") -> (Tensor, Tensor)"); \
  m.def("norm_act_dgrad(Tensor dz, Tensor y, " FC_NORM                                             \
        ", Tensor? sum_g, Tensor? sum_gy, float count, " FC_ACTIVATION                             \
        ", bool want_residual) -> (Tensor, Tensor)")

// Registers the ops for one dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define FC_IMPL_FUSED_OPS(m, Backend)                                                        \
  m.impl("conv_epilogue_fprop", TORCH_BOX(&fastconv::FusedOps<Backend>::conv_epilogue));     \
  m.impl("conv_epilogue_into", TORCH_BOX(&fastconv::FusedOps<Backend>::conv_epilogue_into)); \
  m.impl("conv_epilogue_fprop.packed",                                                       \
         TORCH_BOX(&fastconv::FusedOps<Backend>::conv_epilogue_packed));                     \
  m.impl("conv_epilogue_into.packed",                                                        \
         TORCH_BOX(&fastconv::FusedOps<Backend>::conv_epilogue_into_packed));                \
  m.impl("conv_stats_fprop", TORCH_BOX(&fastconv::FusedOps<Backend>::conv_stats));           \
  m.impl("norm_act_stats", TORCH_BOX(&fastconv::FusedOps<Backend>::stats));                  \
  m.impl("norm_act_fprop", TORCH_BOX(&fastconv::FusedOps<Backend>::fprop));                  \
  m.impl("epilogue_into", TORCH_BOX(&fastconv::FusedOps<Backend>::epilogue_into));           \
  m.impl("norm_act_sums", TORCH_BOX(&fastconv::FusedOps<Backend>::sums));                    \
  m.impl("norm_act_dgrad", TORCH_BOX(&fastconv::FusedOps<Backend>::dgrad))

}  // namespace fastconv
