// The pooling ops on the stable ABI, the same for every backend: geometry, dtypes, new results, and
// the empty cases. A backend computes what is left.
//
//   struct Backend {
//     static void run(const char* op, PoolOperands&);      // every kind, forward and backward
//     static void gather(const char* op, PoolOperands&);   // input -> result at `index`
//     static void unpool(const char* op, PoolOperands&);   // input -> result, sent to `index`
//   };
//
// In the lists an adaptive axis has stride 0, padding 0, dilation 1 and, as its kernel, the number
// of its outputs. Texts here are a backstop; the Python layer has validated with PyTorch's own.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "packed_geometry.h"
#include "pool_call.h"

namespace fastconv {

// What PoolCall says, on tensors: `input` is x forward and dy backward, `result` y and dx.
// All of them are dense, in one memory format.
struct PoolOperands {
  PoolProblem problem{};
  PoolKind kind = PoolKind::kMax;
  PoolIndex index_kind = PoolIndex::kNone;
  bool backward = false;
  bool channels_last = false;
  std::optional<Tensor> input, result, index, x, y, seed;
  bool include_pad = true;
  int64_t divisor = 0;
  double power = 1;
  bool rescale = false;
};

// The operands' pointers, for a launcher.
inline PoolCall call_of(const char* op, const PoolOperands& o, bool integers = false) {
  const auto data = [](const std::optional<Tensor>& t) {
    return t.has_value() ? const_cast<void*>(t->const_data_ptr()) : nullptr;
  };
  PoolCall c{};
  c.p = o.problem;
  if (!integers) c.dtype = dtype_of(*o.input, op);
  c.kind = o.kind, c.index_kind = o.index_kind;
  c.channels_last = o.channels_last, c.backward = o.backward;
  c.x = o.backward ? data(o.x) : data(o.input);
  c.y = data(o.y);
  c.dy = o.backward ? data(o.input) : nullptr;
  c.result = data(o.result);
  if (o.index_kind != PoolIndex::kNone) c.index = data(o.index);
  c.seed = static_cast<const uint64_t*>(data(o.seed));
  c.include_pad = o.include_pad, c.divisor = o.divisor;
  c.power = o.power, c.rescale = o.rescale;
  return c;
}

struct PoolLists {
  IntList kernel, stride, padding, dilation;
};

// The geometry of the `.packed` ops.
inline PoolLists unpacked_lists(int64_t kernel, int64_t moves, int rank) {
  Moves m(moves, rank);
  return {unpacked_size({}, kernel, rank), std::move(m.stride), std::move(m.padding),
          std::move(m.dilation)};
}

inline PoolProblem make_pool_problem(const char* op, const IntList& x, const PoolLists& lists) {
  PoolProblem p{};
  const size_t rank = lists.kernel.size();
  STD_TORCH_CHECK(rank >= 1 && rank <= 3 && x.size() == rank + 2 && lists.stride.size() == rank &&
                      lists.padding.size() == rank && lists.dilation.size() == rank,
                  op, ": expected N, C and one entry per spatial axis (1 to 3) in every list");
  p.rank = static_cast<int>(rank);
  p.N = x[0], p.C = x[1];
  for (int axis = 0; axis < 3; ++axis) {
    p.in[axis] = p.kernel[axis] = p.stride[axis] = p.dilation[axis] = p.out[axis] = 1;
    p.padding[axis] = 0;
  }
  for (size_t i = 0; i < rank; ++i) {
    const size_t axis = 3 - rank + i;
    const int64_t k = lists.kernel[i], s = lists.stride[i];
    const int64_t pad = lists.padding[i], dilation = lists.dilation[i];
    p.in[axis] = x[2 + i], p.kernel[axis] = k, p.stride[axis] = s;
    p.padding[axis] = pad, p.dilation[axis] = dilation;
    const bool fits = s == 0 ? pad == 0 && dilation == 1 && p.in[axis] > 0
                             : s > 0 && pad >= 0 && 2 * pad <= dilation * (k - 1) + 1;
    STD_TORCH_CHECK(k > 0 && dilation > 0 && fits, op, ": input=", x[2 + i], " kernel=", k,
                    " stride=", s, " padding=", pad, " dilation=", dilation,
                    " do not fit together");
    if (s != 0) continue;
    p.out[axis] = k;
    p.kernel[axis] = pool_adaptive_kernel(p.in[axis], k);
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
    if (p.stride[axis] == 0) continue;
    p.out[axis] = pool_out_extent(p.in[axis], p.kernel[axis], p.padding[axis], p.stride[axis],
                                  p.dilation[axis], ceil_mode);
    STD_TORCH_CHECK(p.out[axis] > 0, op, ": input extent ", p.in[axis],
                    " is too small for a window of ", p.kernel[axis]);
  }
}
// From the output's shape, which must be one that the windows can give.
inline void set_out(const char* op, PoolProblem& p, const IntList& out) {
  bool fits = static_cast<int>(out.size()) == p.rank + 2 && out[0] == p.N && out[1] == p.C;
  for (int i = 0; fits && i < p.rank; ++i) {
    const int axis = 3 - p.rank + i;
    if (p.stride[axis] == 0) {
      fits = out[2 + i] == p.out[axis];
      continue;
    }
    const auto extent = [&](bool ceil_mode) {
      return pool_out_extent(p.in[axis], p.kernel[axis], p.padding[axis], p.stride[axis],
                             p.dilation[axis], ceil_mode);
    };
    p.out[axis] = out[2 + i];
    fits = p.out[axis] == extent(false) || p.out[axis] == extent(true);
  }
  STD_TORCH_CHECK(fits, op, ": the output's shape does not fit the input's");
}

inline Tensor empty_index(const Tensor& like, PoolIndex kind, const IntList& sizes,
                          bool channels_last) {
  if (kind == PoolIndex::kNone) return empty_bytes(like, 0);
  const IntList strides = dense_strides(sizes, channels_last);
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const int32_t type =
      kind == PoolIndex::kLong ? aoti_torch_dtype_int64() : aoti_torch_dtype_uint8();
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
  static std::tuple<Tensor, Tensor> max_pool(const Tensor& x, IntList kernel, IntList stride,
                                             IntList padding, IntList dilation, bool ceil_mode,
                                             int64_t index_kind) {
    constexpr const char* op = "max_pool";
    return choosing(op, PoolKind::kMax, x, std::nullopt, {kernel, stride, padding, dilation},
                    ceil_mode, index_kind);
  }

  static std::tuple<Tensor, Tensor> sample_pool(const Tensor& x, const Tensor& seed, IntList kernel,
                                                IntList stride, IntList padding, bool ceil_mode,
                                                int64_t index_kind) {
    constexpr const char* op = "sample_pool";
    dtype_of(x, op);
    STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op,
                    ": the seed must be one int64");
    return choosing(op, PoolKind::kSample, x, seed, {kernel, stride, padding, ones(kernel)},
                    ceil_mode, index_kind);
  }

  static Tensor max_pool_dgrad(const Tensor& dy, const Tensor& index, IntList input_size,
                               IntList kernel, IntList stride, IntList padding, IntList dilation,
                               bool channels_last) {
    constexpr const char* op = "max_pool_dgrad";
    STD_TORCH_CHECK(sizes_of(index) == sizes_of(dy), op, ": dy and index differ in shape");
    dtype_of(dy, op);
    PoolOperands o = backward(op, PoolKind::kMax, dy, input_size,
                              {kernel, stride, padding, dilation}, channels_last);
    o.index_kind = index_kind_of(op, index);
    if (o.result->numel() == 0) return *o.result;
    o.index = dense(index, o.channels_last);
    Backend::run(op, o);
    return *o.result;
  }

  static Tensor max_pool_at(const Tensor& x, const Tensor& index, IntList kernel, IntList stride,
                            IntList padding, IntList dilation) {
    constexpr const char* op = "max_pool_at";
    dtype_of(x, op);
    PoolOperands o;
    o.problem = make_pool_problem(op, sizes_of(x), {kernel, stride, padding, dilation});
    set_out(op, o.problem, sizes_of(index));
    o.channels_last = is_channels_last(x);
    o.index_kind = index_kind_of(op, index);
    o.result = empty_dense(x, sizes_of(index), o.channels_last);
    if (o.result->numel() == 0) return *o.result;
    o.input = dense(x, o.channels_last);
    o.index = dense(index, o.channels_last);
    Backend::gather(op, o);
    return *o.result;
  }

  static Tensor max_unpool(const Tensor& x, const Tensor& index, IntList output_size) {
    constexpr const char* op = "max_unpool";
    dtype_of(x, op);
    const IntList size = sizes_of(x);
    STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && sizes_of(index) == size, op,
                    ": the indices must be int64 and of the input's shape");
    STD_TORCH_CHECK(size.size() >= 3 && size.size() <= 5 && output_size.size() == size.size() &&
                        output_size[0] == size[0] && output_size[1] == size[1],
                    op, ": the output's shape does not fit the input's");
    // Only the two planes' extents matter: `in` is the larger one, the result's.
    PoolOperands o;
    PoolProblem& p = o.problem;
    p.rank = static_cast<int>(size.size()) - 2;
    p.N = size[0], p.C = size[1];
    for (int axis = 0; axis < 3; ++axis) {
      const bool used = axis >= 3 - p.rank;
      p.in[axis] = used ? output_size[axis + p.rank - 1] : 1;
      p.out[axis] = used ? size[axis + p.rank - 1] : 1;
      p.kernel[axis] = p.stride[axis] = p.dilation[axis] = 1;
    }
    o.channels_last = is_channels_last(x);
    o.index_kind = PoolIndex::kLong;
    o.result = empty_dense(x, output_size, o.channels_last);
    if (o.result->numel() == 0) return *o.result;
    o.input = dense(x, o.channels_last);
    o.index = dense(index, o.channels_last);
    Backend::unpool(op, o);
    return *o.result;
  }

  static Tensor sum_pool(const Tensor& x, IntList kernel, IntList stride, IntList padding,
                         bool ceil_mode, bool include_pad, int64_t divisor) {
    constexpr const char* op = "sum_pool";
    PoolOperands o =
        forward(op, PoolKind::kSum, x, {kernel, stride, padding, ones(kernel)}, ceil_mode);
    o.include_pad = include_pad, o.divisor = divisor;
    return finished(op, o);
  }

  static Tensor lp_pool(const Tensor& x, IntList kernel, IntList stride, IntList padding,
                        bool ceil_mode, double power, bool rescale) {
    constexpr const char* op = "lp_pool";
    STD_TORCH_CHECK(power > 0, op, ": the power must be positive, got ", power);
    PoolOperands o =
        forward(op, PoolKind::kLp, x, {kernel, stride, padding, ones(kernel)}, ceil_mode);
    o.power = power, o.rescale = rescale;
    return finished(op, o);
  }

  static Tensor expectation_pool(const Tensor& x, IntList kernel, IntList stride, IntList padding,
                                 bool ceil_mode) {
    constexpr const char* op = "expectation_pool";
    PoolOperands o =
        forward(op, PoolKind::kExpectation, x, {kernel, stride, padding, ones(kernel)}, ceil_mode);
    return finished(op, o);
  }

  static Tensor sum_pool_dgrad(const Tensor& dy, IntList input_size, IntList kernel, IntList stride,
                               IntList padding, bool include_pad, int64_t divisor,
                               bool channels_last) {
    constexpr const char* op = "sum_pool_dgrad";
    PoolOperands o = backward(op, PoolKind::kSum, dy, input_size,
                              {kernel, stride, padding, ones(kernel)}, channels_last);
    o.include_pad = include_pad, o.divisor = divisor;
    return finished(op, o);
  }

  static Tensor lp_pool_dgrad(const Tensor& dy, const Tensor& x, const Tensor& y, IntList kernel,
                              IntList stride, IntList padding, double power, bool rescale) {
    constexpr const char* op = "lp_pool_dgrad";
    STD_TORCH_CHECK(sizes_of(y) == sizes_of(dy), op, ": y and dy differ in shape");
    STD_TORCH_CHECK(x.scalar_type() == dy.scalar_type() && y.scalar_type() == dy.scalar_type(), op,
                    ": dy, x and y differ in dtype");
    PoolOperands o = backward(op, PoolKind::kLp, dy, sizes_of(x),
                              {kernel, stride, padding, ones(kernel)}, is_channels_last(x));
    o.power = power, o.rescale = rescale;
    if (o.result->numel() == 0) return *o.result;
    o.x = dense(x, o.channels_last), o.y = dense(y, o.channels_last);
    return finished(op, o);
  }

  // A maximum without an index: one tensor less to make.
  static Tensor max_pool_value(const Tensor& x, int64_t kernel, int64_t moves, bool ceil_mode) {
    constexpr const char* op = "max_pool";
    const PoolLists l = unpacked_lists(kernel, moves, spatial_rank(x));
    PoolOperands o = forward(op, PoolKind::kMax, x, l, ceil_mode);
    if (o.result->numel() > 0) Backend::run(op, o);
    return *o.result;
  }
  static std::tuple<Tensor, Tensor> max_pool_packed(const Tensor& x, int64_t kernel, int64_t moves,
                                                    bool ceil_mode, int64_t index_kind) {
    const PoolLists l = unpacked_lists(kernel, moves, spatial_rank(x));
    return choosing("max_pool", PoolKind::kMax, x, std::nullopt, l, ceil_mode, index_kind);
  }
  static Tensor max_pool_dgrad_packed(const Tensor& dy, const Tensor& index, int64_t input,
                                      int64_t kernel, int64_t moves, bool channels_last) {
    const int rank = spatial_rank(dy);
    const PoolLists l = unpacked_lists(kernel, moves, rank);
    return max_pool_dgrad(dy, index, unpacked_size({dy.size(0), dy.size(1)}, input, rank), l.kernel,
                          l.stride, l.padding, l.dilation, channels_last);
  }
  static Tensor sum_pool_packed(const Tensor& x, int64_t kernel, int64_t moves, bool ceil_mode,
                                bool include_pad, int64_t divisor) {
    const PoolLists l = unpacked_lists(kernel, moves, spatial_rank(x));
    return sum_pool(x, l.kernel, l.stride, l.padding, ceil_mode, include_pad, divisor);
  }
  static Tensor sum_pool_dgrad_packed(const Tensor& dy, int64_t input, int64_t kernel,
                                      int64_t moves, bool include_pad, int64_t divisor,
                                      bool channels_last) {
    const int rank = spatial_rank(dy);
    const PoolLists l = unpacked_lists(kernel, moves, rank);
    return sum_pool_dgrad(dy, unpacked_size({dy.size(0), dy.size(1)}, input, rank), l.kernel,
                          l.stride, l.padding, include_pad, divisor, channels_last);
  }
  static Tensor lp_pool_packed(const Tensor& x, int64_t kernel, int64_t moves, bool ceil_mode,
                               double power, bool rescale) {
    const PoolLists l = unpacked_lists(kernel, moves, spatial_rank(x));
    return lp_pool(x, l.kernel, l.stride, l.padding, ceil_mode, power, rescale);
  }
  static Tensor lp_pool_dgrad_packed(const Tensor& dy, const Tensor& x, const Tensor& y,
                                     int64_t kernel, int64_t moves, double power, bool rescale) {
    const PoolLists l = unpacked_lists(kernel, moves, spatial_rank(x));
    return lp_pool_dgrad(dy, x, y, l.kernel, l.stride, l.padding, power, rescale);
  }

 private:
  static IntList ones(const IntList& like) { return IntList(like.size(), 1); }

  static PoolOperands forward(const char* op, PoolKind kind, const Tensor& x,
                              const PoolLists& lists, bool ceil_mode) {
    PoolOperands o;
    o.kind = kind;
    o.problem = make_pool_problem(op, sizes_of(x), lists);
    set_out(op, o.problem, ceil_mode);
    o.channels_last = is_channels_last(x);
    o.result = empty_dense(x, pool_sizes(o.problem, o.problem.out), o.channels_last);
    if (o.result->numel() > 0) o.input = dense(x, o.channels_last);
    return o;
  }

  static PoolOperands backward(const char* op, PoolKind kind, const Tensor& dy,
                               const IntList& input_size, const PoolLists& lists,
                               bool channels_last) {
    PoolOperands o;
    o.kind = kind;
    o.backward = true;
    o.problem = make_pool_problem(op, input_size, lists);
    set_out(op, o.problem, sizes_of(dy));
    o.channels_last = channels_last && o.problem.rank > 1;
    o.result = empty_dense(dy, input_size, o.channels_last);
    if (o.result->numel() > 0) o.input = dense(dy, o.channels_last);
    return o;
  }

  static Tensor finished(const char* op, PoolOperands& o) {
    dtype_of(*o.result, op);
    if (o.result->numel() > 0) Backend::run(op, o);
    return *o.result;
  }

  static std::tuple<Tensor, Tensor> choosing(const char* op, PoolKind kind, const Tensor& x,
                                             std::optional<Tensor> seed, const PoolLists& lists,
                                             bool ceil_mode, int64_t index_kind) {
    STD_TORCH_CHECK(index_kind >= 0 && index_kind <= 2, op, ": unknown index kind ", index_kind);
    PoolOperands o = forward(op, kind, x, lists, ceil_mode);
    o.index_kind = static_cast<PoolIndex>(index_kind);
    STD_TORCH_CHECK(o.index_kind != PoolIndex::kByte || o.problem.kernel_size() <= kMaxByteTaps, op,
                    ": a byte cannot tell ", o.problem.kernel_size(), " taps apart");
    o.index = empty_index(x, o.index_kind, sizes_of(*o.result), o.channels_last);
    o.seed = std::move(seed);
    if (o.result->numel() > 0) Backend::run(op, o);
    return {*o.result, *o.index};
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
  m.def("max_unpool_fprop(Tensor x, Tensor index, SymInt[] output_size) -> Tensor");            \
  m.def("sum_pool_fprop(Tensor x, " FC_POOL_LISTS                                               \
        ", bool ceil_mode, bool include_pad, SymInt divisor) -> Tensor");                       \
  m.def("sum_pool_dgrad(Tensor dy, SymInt[] input_size, " FC_POOL_LISTS                         \
        ", bool include_pad, SymInt divisor, bool channels_last) -> Tensor");                   \
  m.def("lp_pool_fprop(Tensor x, " FC_POOL_LISTS                                                \
        ", bool ceil_mode, float power, bool rescale) -> Tensor");                              \
  m.def("lp_pool_dgrad(Tensor dy, Tensor x, Tensor y, " FC_POOL_LISTS                           \
        ", float power, bool rescale) -> Tensor");                                              \
  m.def("sample_pool_fprop(Tensor x, Tensor seed, " FC_POOL_LISTS                               \
        ", bool ceil_mode, int index) -> (Tensor, Tensor)");                                    \
  m.def("expectation_pool_fprop(Tensor x, " FC_POOL_LISTS ", bool ceil_mode) -> Tensor");       \
  m.def("max_pool_fprop.value(Tensor x, int kernel, int moves, bool ceil_mode) -> Tensor");     \
  m.def(                                                                                        \
      "max_pool_fprop.packed(Tensor x, int kernel, int moves, bool ceil_mode, int index) "      \
      "-> (Tensor, Tensor)");                                                                   \
  m.def(                                                                                        \
      "max_pool_dgrad.packed(Tensor dy, Tensor index, int input, int kernel, int moves, "       \
      "bool channels_last) -> Tensor");                                                         \
  m.def(                                                                                        \
      "sum_pool_fprop.packed(Tensor x, int kernel, int moves, bool ceil_mode, "                 \
      "bool include_pad, int divisor) -> Tensor");                                              \
  m.def(                                                                                        \
      "sum_pool_dgrad.packed(Tensor dy, int input, int kernel, int moves, bool include_pad, "   \
      "int divisor, bool channels_last) -> Tensor");                                            \
  m.def(                                                                                        \
      "lp_pool_fprop.packed(Tensor x, int kernel, int moves, bool ceil_mode, float power, "     \
      "bool rescale) -> Tensor");                                                               \
  m.def(                                                                                        \
      "lp_pool_dgrad.packed(Tensor dy, Tensor x, Tensor y, int kernel, int moves, "             \
      "float power, bool rescale) -> Tensor")

// Registers the ops for one dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define FC_IMPL_POOL_OPS(m, Backend)                                                              \
  m.impl("max_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool));                     \
  m.impl("max_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_dgrad));               \
  m.impl("max_pool_at", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_at));                     \
  m.impl("max_unpool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::max_unpool));                 \
  m.impl("sum_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool));                     \
  m.impl("sum_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool_dgrad));               \
  m.impl("lp_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool));                       \
  m.impl("lp_pool_dgrad", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool_dgrad));                 \
  m.impl("sample_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::sample_pool));               \
  m.impl("expectation_pool_fprop", TORCH_BOX(&fastconv::PoolOps<Backend>::expectation_pool));     \
  m.impl("max_pool_fprop.value", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_value));         \
  m.impl("max_pool_fprop.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_packed));       \
  m.impl("max_pool_dgrad.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::max_pool_dgrad_packed)); \
  m.impl("sum_pool_fprop.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool_packed));       \
  m.impl("sum_pool_dgrad.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::sum_pool_dgrad_packed)); \
  m.impl("lp_pool_fprop.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool_packed));         \
  m.impl("lp_pool_dgrad.packed", TORCH_BOX(&fastconv::PoolOps<Backend>::lp_pool_dgrad_packed))

}  // namespace fastconv
