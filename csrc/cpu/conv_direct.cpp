// The direct convolution: no im2col, no transform. Right for every problem, dtype and stride; see
// conv_direct.h for how, conv_direct_isa.cpp and conv_direct_wgrad_isa.cpp for the kernels.
#include <algorithm>
#include <cstring>

#include "conv_algorithm.h"
#include "conv_direct_plan.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu {
FC_DECLARE_ISA_TABLE(DirectGatherTable, direct_gather)
FC_DECLARE_ISA_TABLE(DirectWgradTable, direct_wgrad)

namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr double kThreadedMacs = 2e5;
// Seconds to set a byte to zero, first touch included; as in conv_direct_cost.cpp.
constexpr double kZeroByte = 0.045e-9;

int64_t dtype_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

std::string applicable(const ConvProblem&, DType, Direction) { return ""; }

// Strides are not known here: the larger of what the layouts need.
int64_t workspace(const ConvProblem& p, DType dtype, Direction direction, int threads) {
  const int vec_bytes = direct_gather_for(dtype).vec_bytes;
  int64_t most = 0;
  for (int64_t klass = 0; klass < direct_classes(p, direction); ++klass)
    for (int layout = 0; layout < 4; ++layout) {
      DirectPlan g;
      if (plan_direct(p, dtype, direction, klass, {(layout & 1) != 0, (layout & 2) != 0}, threads,
                      vec_bytes, &g))
        most = std::max(most, direct_workspace(g, threads));
    }
  return most;
}

double cost(const ConvProblem& p, DType dtype, Direction direction, int threads) {
  const int vec_bytes = direct_gather_for(dtype).vec_bytes;
  double seconds = 2e-6;
  if (direct_leaves_zeros(p, direction))
    seconds += kZeroByte * double(p.N) * p.C * p.in_size() * dtype_bytes(dtype);
  for (int64_t klass = 0; klass < direct_classes(p, direction); ++klass) {
    DirectPlan g;
    if (plan_direct(p, dtype, direction, klass, {false, false}, threads, vec_bytes, &g))
      seconds += direct_cost(g, p.macs() > kThreadedMacs ? threads : 1, vec_bytes);
  }
  return seconds;
}

DirectTensor tensor(const TensorRef& t) {
  DirectTensor d{t.data, {}};
  std::copy(t.stride, t.stride + 5, d.stride);
  return d;
}

// One output channel per group: [g][ci][tap] is what a contiguous weight tensor is.
bool packed_already(const DirectPlan& g) {
  const int64_t R = g.axis[1].taps, S = g.axis[2].taps;
  return g.kernel == DirectKernel::kRows && g.Ko == 1 && g.dtype <= DType::kFloat64 &&
         g.taps == g.filter_taps && (S == 1 || g.w_tap[2] == 1) && (R == 1 || g.w_tap[1] == S) &&
         (g.axis[0].taps == 1 || g.w_tap[0] == R * S) && (g.Ci == 1 || g.w_ci == g.taps) &&
         (g.groups == 1 || g.w_group == g.Ci * g.taps);
}

template <class F>
void run_tasks(bool threaded, int64_t tasks, const F& f) {
  if (threaded && tasks > 1)
    parallel_for(tasks, [&](int64_t b, int64_t e) { f(b, e, thread_index()); });
  else if (tasks > 0)
    f(0, tasks, 0);
}

// dx is dense, in whatever order.
void zero_input_gradient(const ConvCall& c) {
  constexpr int64_t kBlock = 1 << 20;
  const int64_t bytes = c.problem.N * c.problem.C * c.problem.in_size() * dtype_bytes(c.dtype);
  char* data = static_cast<char*>(c.x.data);
  run_tasks(c.threads > 1, (bytes + kBlock - 1) / kBlock, [&](int64_t b, int64_t e, int) {
    std::memset(data + b * kBlock, 0, std::min(e * kBlock, bytes) - b * kBlock);
  });
}

void run(const ConvCall& c) {
  const ConvProblem& p = c.problem;
  const DirectGatherTable& gather = direct_gather_for(c.dtype);
  const bool dgrad = c.direction == Direction::kDgrad;
  const TensorRef &in = dgrad ? c.y : c.x, &out = dgrad ? c.x : c.y;
  const bool threaded = c.threads > 1 && p.macs() > kThreadedMacs;
  if (direct_leaves_zeros(p, c.direction)) zero_input_gradient(c);
  for (int64_t klass = 0; klass < direct_classes(p, c.direction); ++klass) {
    DirectPlan g;
    if (!plan_direct(p, c.dtype, c.direction, klass, {in.stride[1] == 1, out.stride[1] == 1},
                     c.threads, gather.vec_bytes, &g))
      continue;
    bind_direct(p, klass, c.workspace, &g);
    g.in = tensor(in);
    g.out = tensor(out);
    g.w = c.w.data;
    g.bias = c.bias;
    g.epilogue = c.epilogue;
    g.moments = c.moments;
    g.w_group = p.filters_per_group() * c.w.stride[0];
    g.w_ko = c.w.stride[dgrad ? 1 : 0];
    g.w_ci = c.w.stride[dgrad ? 0 : 1];
    for (int i = 0; i < 3; ++i) g.w_tap[i] = c.w.stride[2 + i];
    char* slots = static_cast<char*>(g.partial) + g.partial_bytes;
    if (c.direction == Direction::kWgrad) {
      const DirectWgradTable& wgrad = direct_wgrad_for(c.dtype);
      run_tasks(threaded, g.tasks, [&](int64_t b, int64_t e, int thread) {
        wgrad.run(g, b, e, slots + thread * g.slot_bytes);
      });
      run_tasks(threaded, g.finish_tasks,
                [&](int64_t b, int64_t e, int) { wgrad.finish(g, b, e); });
    } else {
      if (packed_already(g)) {
        g.weights = g.w;
        g.pack_tasks = 0;
      }
      run_tasks(threaded, g.pack_tasks, [&](int64_t b, int64_t e, int) { gather.pack(g, b, e); });
      run_tasks(threaded, g.tasks, [&](int64_t b, int64_t e, int thread) {
        gather.run(g, b, e, slots + thread * g.slot_bytes);
      });
    }
  }
}

// The tiles do not depend on the threads.
int64_t moment_blocks(const ConvCall& c) {
  DirectPlan g;
  if (!plan_direct(c.problem, c.dtype, c.direction, 0, {c.x.stride[1] == 1, c.y.stride[1] == 1},
                   c.threads, direct_gather_for(c.dtype).vec_bytes, &g))
    return 0;
  // Planes, and a few channels at a time: no faster than a pass that takes whole planes and lines.
  if (g.kernel == DirectKernel::kRows || c.y.stride[1] != 1) return 0;
  return c.problem.N * g.axis[0].tiles * g.axis[1].tiles * g.axis[2].tiles;
}

}  // namespace

const ConvAlgorithm conv_direct{"direct", applicable, workspace, cost, run, moment_blocks};
}  // namespace fastconv::cpu
