// The CPU key of the pooling ops: chooses the pass, prepares what windows are divided by, and hands
// out the work.
#include <string>
#include <vector>

#include "../common/pool_ops.h"
#include "isa.h"
#include "parallel.h"
#include "pool_passes.h"
#include "pool_places.h"
#include "pool_separable.h"

namespace fastconv::cpu {
FC_DECLARE_ISA_TABLE(PoolLines<float>, pool_lines)
namespace baseline {
extern const PoolLines<double> pool_lines_fp64;
}

namespace {

// A second thread costs more than it saves below this work: taps where each is drawn from or raised
// to a power, else elements that are read and, at less than half of their price, taps.
constexpr double kThreadedTaps = 1e5, kThreadedWork = 2e5;
bool threads_pay(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const double planes = double(p.N) * p.C, taps = planes * p.out_size() * p.kernel_size();
  const bool plain = call.kind == PoolKind::kMax || call.kind == PoolKind::kSum ||
                     (call.kind == PoolKind::kLp && (call.power == 1 || call.power == 2));
  return plain && !call.backward ? planes * p.in_size() + 0.4 * taps > kThreadedWork
                                 : taps > kThreadedTaps;
}
// Scratch of one thread that is not worth a tensor.
constexpr int64_t kLocalBytes = 16 << 10;

// How many elements of each window are counted along one axis.
std::vector<double> counts(const PoolProblem& p, int axis, bool include_pad, bool windows) {
  std::vector<double> n(p.out[axis], 1.0);
  if (!windows) return n;
  for (int64_t i = 0; i < p.out[axis]; ++i)
    n[i] = static_cast<double>(pool_window_size(p, axis, i, include_pad));
  return n;
}

// Windows that span whole rows are windows of the rows joined: a longer last axis, and one axis
// less. Their taps and places count as before.
void join_rows(PoolProblem& p) {
  for (int axis = 0; axis < 3; ++axis) {
    if (p.stride[axis] != 0 || p.in[axis] % p.out[axis] != 0) continue;
    p.stride[axis] = p.kernel[axis] = p.in[axis] / p.out[axis];
  }
  for (int axis = 1; axis >= 0; --axis) {
    const bool spans = p.out[2] == 1 && p.kernel[2] == p.in[2] && p.padding[2] == 0;
    if (!spans || p.dilation[axis] != 1 || p.dilation[2] != 1 || p.stride[axis] == 0) return;
    const int64_t row = p.in[2];
    p.in[2] = p.in[axis] * row, p.kernel[2] = p.kernel[axis] * row;
    p.stride[2] = p.stride[axis] * row, p.padding[2] = p.padding[axis] * row;
    p.out[2] = p.out[axis];
    p.in[axis] = p.kernel[axis] = p.stride[axis] = p.out[axis] = 1;
    p.padding[axis] = 0;
  }
}

bool integer_type(const Tensor& t, IntegerType* type) {
  switch (t.scalar_type()) {
    case ScalarType::Char: *type = IntegerType::kInt8; return true;
    case ScalarType::Byte: *type = IntegerType::kUInt8; return true;
    case ScalarType::Short: *type = IntegerType::kInt16; return true;
    case ScalarType::Int: *type = IntegerType::kInt32; return true;
    case ScalarType::Long: *type = IntegerType::kInt64; return true;
    default: return false;
  }
}

template <class A>
void run_passes(const CpuPoolCall& call, const PoolLines<A>& lines, const Tensor& like) {
  const int threads = threads_pay(call) ? num_threads() : 1;
  const bool separable = pool_separable_applies(call);
  const PoolWork work = call.backward ? pool_backward_work(call, lines)
                        : separable   ? pool_separable_work(call, lines)
                                      : pool_forward_work(call, lines);
  const auto pass = [&](int64_t begin, int64_t end, char* own) {
    if (call.backward)
      pool_backward(call, lines, begin, end, own);
    else if (separable)
      pool_separable(call, lines, begin, end, own);
    else
      pool_forward(call, lines, begin, end, own);
  };
  if (threads == 1 && work.scratch <= kLocalBytes) {
    alignas(64) char local[kLocalBytes];
    return pass(0, work.tasks, local);
  }
  const int64_t bytes = (work.scratch + 63) / 64 * 64;
  const Tensor scratch = empty_bytes(like, bytes * threads + 64);
  char* base = static_cast<char*>(const_cast<void*>(scratch.const_data_ptr()));
  base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
  if (threads == 1) return pass(0, work.tasks, base);
  parallel_for(work.tasks, [&](int64_t begin, int64_t end) {
    pass(begin, end, base + bytes * thread_index());
  });
}

struct Backend {
  static void run(const char* op, PoolOperands& o) {
    CpuPoolCall call{};
    IntegerType type;
    const bool integers = o.kind == PoolKind::kMax && !o.backward && integer_type(*o.input, &type);
    static_cast<PoolCall&>(call) = call_of(op, o, integers);
    if (integers) return max_pool_integers(call, type);
    if (o.kind == PoolKind::kMax && o.backward && o.index_kind == PoolIndex::kLong)
      return max_pool_scatter(call);
    STD_TORCH_CHECK(call.dtype == DType::kFloat64 || o.problem.kernel_size() < (int64_t{1} << 31),
                    op, ": a window of ", o.problem.kernel_size(), " taps is too large");
    join_rows(o.problem);
    call.p = o.problem;
    const bool windows = o.kind == PoolKind::kSum ? o.divisor == 0 : o.rescale;
    std::vector<double> count[3];
    for (int axis = 0; axis < 3; ++axis) {
      count[axis] = counts(o.problem, axis, o.include_pad, windows);
      call.count[axis] = count[axis].data();
    }
    if (o.kind == PoolKind::kSum && o.divisor != 0)
      for (double& n : count[0]) n = static_cast<double>(o.divisor);
    call.scale = 1;
    if (o.kind == PoolKind::kLp && o.rescale)
      call.scale = static_cast<double>(o.problem.kernel_size());
    if (call.dtype == DType::kFloat64)
      run_passes(call, baseline::pool_lines_fp64, *o.input);
    else
      run_passes(call, pool_lines_active(), *o.input);
  }

  static void gather(const char* op, PoolOperands& o) {
    CpuPoolCall call{};
    static_cast<PoolCall&>(call) = call_of(op, o);
    max_pool_gather(call, element_bytes(call.dtype));
  }

  static void unpool(const char* op, PoolOperands& o) {
    CpuPoolCall call{};
    static_cast<PoolCall&>(call) = call_of(op, o);
    int64_t wrong = 0;
    if (max_unpool(call, element_bytes(call.dtype), &wrong)) return;
    // PyTorch's text; its 1-D op is its 2-D one on a last axis of 1.
    const int64_t* in = call.p.in;
    std::string sizes = call.p.rank == 3 ? std::to_string(in[0]) + "x" : "";
    sizes += call.p.rank == 1 ? std::to_string(in[2]) + "x1"
                              : std::to_string(in[1]) + "x" + std::to_string(in[2]);
    STD_TORCH_CHECK(false, "Found an invalid max index: ", wrong, " (output volumes are of size ",
                    sizes, ")");
  }

 private:
  static int64_t element_bytes(DType type) {
    return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
  }
};

}  // namespace
}  // namespace fastconv::cpu

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { FC_IMPL_POOL_OPS(m, fastconv::cpu::Backend); }
