// The CPU key of the pooling ops: chooses the kernel, prepares what windows are divided by, and
// hands out the work.
#include <algorithm>
#include <vector>

#include "../common/pool_ops.h"
#include "isa.h"
#include "parallel.h"
#include "pool_places.h"

namespace fastconv::cpu {
FC_DECLARE_ISA_TABLE(PoolTable, pool_channels)
FC_DECLARE_ISA_TABLE(PoolTable, pool_rows)
FC_DECLARE_ISA_TABLE(PoolTable, pool_rows_dgrad)

namespace {

// Below this many taps a second thread costs more than it saves.
constexpr double kThreadedTaps = 1e5;

// How many elements of each window are counted along one axis.
std::vector<double> counts(const PoolProblem& p, int axis, bool include_pad, bool windows) {
  std::vector<double> n(p.out[axis], 1.0);
  if (!windows) return n;
  for (int64_t i = 0; i < p.out[axis]; ++i)
    n[i] = static_cast<double>(pool_window_size(p, axis, i, include_pad));
  return n;
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

void run_table(const PoolTable& table, const CpuPoolCall& call, const Tensor& like) {
  const PoolProblem& p = call.p;
  const double taps = double(p.N) * p.C * p.out_size() * p.kernel_size();
  const int threads = taps > kThreadedTaps ? num_threads() : 1;
  const int64_t tasks = table.tasks(call, threads), bytes = table.scratch(call);
  const Tensor scratch = empty_bytes(like, bytes * threads + 64);
  char* base = static_cast<char*>(const_cast<void*>(scratch.const_data_ptr()));
  base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
  if (threads == 1) return table.run(call, 0, tasks, 1, base);
  parallel_for(tasks, [&](int64_t begin, int64_t end) {
    table.run(call, begin, end, threads, base + bytes * thread_index());
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
    STD_TORCH_CHECK(o.kind <= PoolKind::kLp && !o.problem.adaptive(), op, ": not on the CPU yet");
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
    if (o.channels_last)
      run_table(pool_channels_active(), call, *o.input);
    else
      run_table(o.backward ? pool_rows_dgrad_active() : pool_rows_active(), call, *o.input);
  }

  static void gather(const char* op, PoolOperands& o) {
    CpuPoolCall call{};
    static_cast<PoolCall&>(call) = call_of(op, o);
    const int64_t bytes = call.dtype == DType::kFloat64 ? 8 : call.dtype == DType::kFloat32 ? 4 : 2;
    max_pool_gather(call, bytes);
  }

  static void unpool(const char* op, PoolOperands&) {
    STD_TORCH_CHECK(false, op, ": not on the CPU yet");
  }
};

}  // namespace
}  // namespace fastconv::cpu

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { FC_IMPL_POOL_OPS(m, fastconv::cpu::Backend); }
