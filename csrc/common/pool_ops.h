// The pooling ops on the stable ABI, the same for every backend: geometry, dtypes, new results, and
// the empty cases. A backend computes what is left.
//
//   struct Backend {
//     static void run(PoolOperands&);      // max, sum, Lp; forward and backward
//     static void gather(PoolOperands&);   // x -> y at `index`
//   };
//
// Texts here are a backstop; the Python layer has validated with PyTorch's own.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "pool_problem.h"
#include "torch_tensors.h"

namespace fastconv {

enum class PoolOp : int { kMax, kSum, kLp };

// Forward: x -> y (and index). Backward: y (= dy), index or (x, value = y) -> x (= dx).
// All tensors are dense, in one memory format.
struct PoolOperands {
  PoolProblem problem;
  PoolOp op;
  bool backward;
  bool channels_last;
  PoolIndex index_kind;
  Tensor input;   // x forward, dy backward
  Tensor result;  // y forward, dx backward
  std::optional<Tensor> index, x, y;
  bool include_pad;  // kSum
  int64_t divisor;   // kSum; 0: the window's size
  double power;      // kLp
  bool rescale;      // kLp: as if partial windows were whole
};

inline PoolProblem make_pool_problem(const char* op, const IntList& x, const IntList& kernel,
                                     const IntList& stride, const IntList& padding,
                                     const IntList& dilation) {
  PoolProblem p{};
  const size_t rank = kernel.size();
  STD_TORCH_CHECK(rank >= 1 && rank <= 3 && x.size() == rank + 2 && stride.size() == rank &&
                      padding.size() == rank && dilation.size() == rank,
                  op, ": expected N, C and one entry per spatial axis (1 to 3) in every list");
  p.rank = static_cast<int>(rank);
  p.N = x[0], p.C = x[1];
  for (int axis = 0; axis < 3; ++axis) {
    p.in[axis] = p.kernel[axis] = p.stride[axis] = p.dilation[axis] = p.out[axis] = 1;
    p.padding[axis] = 0;
  }
  for (size_t i = 0; i < rank; ++i) {
    const size_t axis = 3 - rank + i;
    p.in[axis] = x[2 + i], p.kernel[axis] = kernel[i], p.stride[axis] = stride[i];
    p.padding[axis] = padding[i], p.dilation[axis] = dilation[i];
    STD_TORCH_CHECK(kernel[i] > 0 && stride[i] > 0 && dilation[i] > 0 && padding[i] >= 0 &&
                        2 * padding[i] <= dilation[i] * (kernel[i] - 1) + 1,
                    op, ": kernel=", kernel[i], " stride=", stride[i], " padding=", padding[i],
                    " dilation=", dilation[i], " do not fit together");
  }
  return p;
}

inline IntList pool_sizes(const PoolProblem& p, const int64_t (&extents)[3]) {
  IntList s{p.N, p.C};
  for (int axis = 3 - p.rank; axis < 3; ++axis) s.push_back(extents[axis]);
  return s;
}

inline void set_out(const char* op, PoolProblem& p, bool ceil_mode) {
  for (int axis = 0; axis < 3; ++axis) {
    p.out[axis] = pool_out_extent(p.in[axis], p.kernel[axis], p.padding[axis], p.stride[axis],
                                  p.dilation[axis], ceil_mode);
    STD_TORCH_CHECK(p.out[axis] > 0, op, ": input extent ", p.in[axis],
                    " is too small for a window of ", p.kernel[axis]);
  }
}
inline void set_out(const char* op, PoolProblem& p, const IntList& out) {
  STD_TORCH_CHECK(static_cast<int>(out.size()) == p.rank + 2 && out[0] == p.N && out[1] == p.C, op,
                  ": the output's shape does not fit the input's");
  for (int i = 0; i < p.rank; ++i) p.out[3 - p.rank + i] = out[2 + i];
}

// t itself, or a copy of it with dense strides.
inline Tensor dense(const Tensor& t, bool channels_last) {
  const IntList sizes = sizes_of(t), want = dense_strides(sizes, channels_last);
  const auto have = t.strides();
  bool same = true;
  for (size_t i = 0; i < want.size(); ++i) same = same && (sizes[i] <= 1 || have[i] == want[i]);
  if (same) return t;
  Tensor copy = empty_dense(t, sizes, channels_last);
  torch::stable::copy_(copy, t);
  return copy;
}

inline Tensor empty_as(const Tensor& like, const IntList& sizes, bool channels_last,
                       ScalarType dtype) {
  const IntList strides = dense_strides(sizes, channels_last);
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const int32_t type =
      dtype == ScalarType::Long ? aoti_torch_dtype_int64() : aoti_torch_dtype_uint8();
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               type, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline PoolIndex index_kind_of(const char* op, const Tensor& index) {
  const bool byte = index.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(byte || index.scalar_type() == ScalarType::Long, op,
                  ": index must be uint8 or int64");
  return byte ? PoolIndex::kByte : PoolIndex::kLong;
}

template <class Backend>
struct PoolOps {
  static IntList ones(const IntList& like) { return IntList(like.size(), 1); }

  static std::tuple<Tensor, Tensor> max_pool(const Tensor& x, IntList kernel, IntList stride,
                                             IntList padding, IntList dilation, bool ceil_mode,
                                             int64_t index_kind) {
    constexpr const char* op = "max_pool";
    PoolProblem p = make_pool_problem(op, sizes_of(x), kernel, stride, padding, dilation);
    set_out(op, p, ceil_mode);
    const bool last = is_channels_last(x);
    const auto kind = static_cast<PoolIndex>(index_kind);
    STD_TORCH_CHECK(index_kind >= 0 && index_kind <= 2, op, ": unknown index kind ", index_kind);
    STD_TORCH_CHECK(kind != PoolIndex::kByte || p.kernel_size() <= kMaxByteTaps, op,
                    ": a byte cannot tell ", p.kernel_size(), " taps apart");
    const IntList size = pool_sizes(p, p.out);
    Tensor y = empty_dense(x, size, last);
    Tensor index = kind == PoolIndex::kNone
                       ? empty_bytes(x, 0)
                       : empty_as(x, size, last,
                                  kind == PoolIndex::kLong ? ScalarType::Long : ScalarType::Byte);
    if (y.numel() == 0) return {y, index};
    PoolOperands o{p, PoolOp::kMax, false,        last,         kind,  dense(x, last),
                   y, index,        std::nullopt, std::nullopt, false, 0,
                   0, false};
    Backend::run(o);
    return {y, index};
  }

  static Tensor max_pool_dgrad(const Tensor& dy, const Tensor& index, IntList input_size,
                               IntList kernel, IntList stride, IntList padding, IntList dilation,
                               bool channels_last) {
    constexpr const char* op = "max_pool_dgrad";
    PoolProblem p = make_pool_problem(op, input_size, kernel, stride, padding, dilation);
    set_out(op, p, sizes_of(dy));
    STD_TORCH_CHECK(sizes_of(index) == sizes_of(dy), op, ": dy and index differ in shape");
    const bool last = channels_last && p.rank > 1;
    const PoolIndex kind = index_kind_of(op, index);
    dtype_of(dy, op);
    Tensor dx = empty_dense(dy, input_size, last);
    if (dx.numel() == 0) return dx;
    PoolOperands o{p,
                   PoolOp::kMax,
                   true,
                   last,
                   kind,
                   dense(dy, last),
                   dx,
                   dense(index, last),
                   std::nullopt,
                   std::nullopt,
                   false,
                   0,
                   0,
                   false};
    Backend::run(o);
    return dx;
  }

  static Tensor max_pool_at(const Tensor& x, const Tensor& index, IntList kernel, IntList stride,
                            IntList padding, IntList dilation) {
    constexpr const char* op = "max_pool_at";
    PoolProblem p = make_pool_problem(op, sizes_of(x), kernel, stride, padding, dilation);
    set_out(op, p, sizes_of(index));
    const bool last = is_channels_last(x);
    const PoolIndex kind = index_kind_of(op, index);
    dtype_of(x, op);
    Tensor y = empty_dense(x, sizes_of(index), last);
    if (y.numel() == 0) return y;
    PoolOperands o{p,
                   PoolOp::kMax,
                   false,
                   last,
                   kind,
                   dense(x, last),
                   y,
                   dense(index, last),
                   std::nullopt,
                   std::nullopt,
                   false,
                   0,
                   0,
                   false};
    Backend::gather(o);
    return y;
  }

  static Tensor sum_pool(const Tensor& x, IntList kernel, IntList stride, IntList padding,
                         bool ceil_mode, bool include_pad, int64_t divisor) {
    constexpr const char* op = "sum_pool";
    PoolProblem p = make_pool_problem(op, sizes_of(x), kernel, stride, padding, ones(kernel));
    set_out(op, p, ceil_mode);
    return forward(op, p, PoolOp::kSum, x, include_pad, divisor, 1, false);
  }

  static Tensor lp_pool(const Tensor& x, IntList kernel, IntList stride, IntList padding,
                        bool ceil_mode, double power, bool rescale) {
    constexpr const char* op = "lp_pool";
    PoolProblem p = make_pool_problem(op, sizes_of(x), kernel, stride, padding, ones(kernel));
    set_out(op, p, ceil_mode);
    STD_TORCH_CHECK(power > 0, op, ": the power must be positive, got ", power);
    return forward(op, p, PoolOp::kLp, x, true, 0, power, rescale);
  }

  static Tensor sum_pool_dgrad(const Tensor& dy, IntList input_size, IntList kernel, IntList stride,
                               IntList padding, bool include_pad, int64_t divisor,
                               bool channels_last) {
    constexpr const char* op = "sum_pool_dgrad";
    PoolProblem p = make_pool_problem(op, input_size, kernel, stride, padding, ones(kernel));
    set_out(op, p, sizes_of(dy));
    const bool last = channels_last && p.rank > 1;
    dtype_of(dy, op);
    Tensor dx = empty_dense(dy, input_size, last);
    if (dx.numel() == 0) return dx;
    PoolOperands o{p,  PoolOp::kSum, true,         last,         PoolIndex::kNone, dense(dy, last),
                   dx, std::nullopt, std::nullopt, std::nullopt, include_pad,      divisor,
                   1,  false};
    Backend::run(o);
    return dx;
  }

  static Tensor lp_pool_dgrad(const Tensor& dy, const Tensor& x, const Tensor& y, IntList kernel,
                              IntList stride, IntList padding, double power, bool rescale) {
    constexpr const char* op = "lp_pool_dgrad";
    PoolProblem p = make_pool_problem(op, sizes_of(x), kernel, stride, padding, ones(kernel));
    set_out(op, p, sizes_of(dy));
    STD_TORCH_CHECK(sizes_of(y) == sizes_of(dy), op, ": y and dy differ in shape");
    STD_TORCH_CHECK(x.scalar_type() == dy.scalar_type() && y.scalar_type() == dy.scalar_type(), op,
                    ": dy, x and y differ in dtype");
    dtype_of(dy, op);
    const bool last = is_channels_last(x);
    Tensor dx = empty_dense(x, sizes_of(x), last);
    if (dx.numel() == 0) return dx;
    PoolOperands o{p,
                   PoolOp::kLp,
                   true,
                   last,
                   PoolIndex::kNone,
                   dense(dy, last),
                   dx,
                   std::nullopt,
                   dense(x, last),
                   dense(y, last),
                   true,
                   0,
                   power,
                   rescale};
    Backend::run(o);
    return dx;
  }

 private:
  static Tensor forward(const char* op, const PoolProblem& p, PoolOp kind, const Tensor& x,
                        bool include_pad, int64_t divisor, double power, bool rescale) {
    dtype_of(x, op);
    const bool last = is_channels_last(x);
    Tensor y = empty_dense(x, pool_sizes(p, p.out), last);
    if (y.numel() == 0) return y;
    PoolOperands o{
        p,     kind,         false,        last,         PoolIndex::kNone, dense(x, last),
        y,     std::nullopt, std::nullopt, std::nullopt, include_pad,      divisor,
        power, rescale};
    Backend::run(o);
    return y;
  }
};

// Lists have one entry per spatial axis; input_size is the full shape. index: a PoolIndex.
#define FC_POOL_LISTS "SymInt[] kernel, SymInt[] stride, SymInt[] padding"
#define FC_DEFINE_POOL_OPS(m)                                                                   \
  m.def("max_pool_fprop(Tensor x, " FC_POOL_LISTS                                               \
        ", SymInt[] dilation, bool ceil_mode, int index) -> (Tensor, Tensor)");                 \
  m.def("max_pool_dgrad(Tensor dy, Tensor index, SymInt[] input_size, " FC_POOL_LISTS           \
        ", SymInt[] dilation, bool channels_last) -> Tensor");                                  \
  m.def("max_pool_at(Tensor x, Tensor index, " FC_POOL_LISTS ", SymInt[] dilation) -> Tensor"); \
  m.def("sum_pool_fprop(Tensor x, " FC_POOL_LISTS                                               \
        ", bool ceil_mode, bool include_pad, SymInt divisor) -> Tensor");                       \
  m.def("sum_pool_dgrad(Tensor dy, SymInt[] input_size, " FC_POOL_LISTS                         \
        ", bool include_pad, SymInt divisor, bool channels_last) -> Tensor");                   \
  m.def("lp_pool_fprop(Tensor x, " FC_POOL_LISTS                                                \
        ", bool ceil_mode, float power, bool rescale) -> Tensor");                              \
  m.def("lp_pool_dgrad(Tensor dy, Tensor x, Tensor y, " FC_POOL_LISTS                           \
        ", float power, bool rescale) -> Tensor")

// Registers the ops for one dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define FC_IMPL_POOL_OPS(m, Backend)                                                \
  m.impl("max_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool));       \
  m.impl("max_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_dgrad)); \
  m.impl("max_pool_at", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_at));       \
  m.impl("sum_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool));       \
  m.impl("sum_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool_dgrad)); \
  m.impl("lp_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool));         \
  m.impl("lp_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool_dgrad))

}  // namespace fastconv
