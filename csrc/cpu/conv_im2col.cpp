// The `im2col` algorithm: every direction as a matrix product whose gathered operand exists one
// tile at a time (see conv_im2col.h for the mapping). Deterministic: the order of every sum is a
// property of the problem, not of the threads.
//
// Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), for
// the blocking; Dukhan, "The indirect convolution algorithm" (2019), for reading pixels in place.
#include <algorithm>
#include <atomic>

#include "conv_im2col_plan.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu {
FC_DECLARE_ISA_TABLE(Im2colKernels, im2col_kernels)
namespace {

constexpr int64_t kMaxPlans = 16;  // products planned at once; more classes run in rounds

std::string applicable(const ConvProblem&, DType, Direction) { return ""; }

int64_t partial_bytes(const ConvProblem& p, DType dtype, Direction direction) {
  const int64_t slices = im2col_slices(p, dtype, direction);
  if (slices == 1) return 0;
  const int64_t size = dtype == DType::kFloat64 ? 8 : 4;
  return im2col_ceil(slices * p.K * p.channels_per_group() * p.filter_size() * size, 64) * 64;
}

int64_t workspace(const ConvProblem& p, DType dtype, Direction direction, int threads) {
  const Im2colKernels& kernels = im2col_kernels_for(dtype);
  const int64_t packed = im2col_packed_bytes(p, dtype, direction, kernels);
  return partial_bytes(p, dtype, direction) + im2col_ceil(packed, 64) * 64 +
         threads * im2col_scratch(p, dtype, direction, kernels).bytes;
}

// Below this, starting threads costs more than they save.
constexpr double kSerialMacs = 4e5;

// Sustained multiply-add rate of one thread in fp32, in flop/s. AVX2 is measured on Zen 3 at
// 3.2 GHz; baseline and AVX-512 are guesses, never measured.
double flops_per_thread(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return 150e9;
    case Isa::kAvx2: return 88e9;
    case Isa::kWide: return 30e9;
    default: return 21e9;
  }
}

// Fitted on the layers of ResNet-50, VGG-16 and GoogLeNet, N=1 and 8: arithmetic of the padded
// tiles, every tensor once through memory, packing where runs are short, one visit per group.
double cost(const ConvProblem& p, DType dtype, Direction direction, int threads) {
  const bool backward = direction == Direction::kDgrad, wgrad = direction == Direction::kWgrad;
  const double workers = p.macs() < kSerialMacs ? 1 : 1 + 0.82 * (std::max(1, threads) - 1);
  const double filters = double(backward ? p.channels_per_group() : p.filters_per_group());
  const double channels = double(backward ? p.filters_per_group() : p.channels_per_group());
  const double pixels = double(p.N) * double(backward ? p.in_size() : p.out_size());
  const double taps = double(p.filter_size());
  const double columns = wgrad ? channels * taps : pixels;
  const double waste = (1 + 3 / columns) * std::max(1.0, (backward ? 8 : 4) / filters);
  const double wide = dtype == DType::kFloat64 ? 2 : 1;
  const double narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16 ? 1.1 : 1;
  double seconds =
      2 * p.macs() * waste * wide * narrow / flops_per_thread(active_isa()) * (wgrad ? 1.16 : 1.0);
  // Unfolding: felt where few filters share each unfolded element.
  const double unfold = backward ? 0.2e-9 : wgrad ? 0.3e-9 : 0.05e-9;
  if (taps > 1) seconds += double(p.groups) * channels * taps * pixels * unfold;
  const double weights = double(p.K) * double(p.channels_per_group()) * taps;
  if (channels < 12 && taps > 1 && !wgrad)
    seconds += double(p.groups) * channels * taps * pixels * 0.2e-9;
  if (backward && taps > 1) seconds += weights * 1.0e-9;
  seconds += double(p.groups) * (1.5e-6 + taps * 3e-8 * pixels / 16);
  seconds /= workers;
  const double elements =
      double(p.N) * (double(p.C) * double(p.in_size()) + double(p.K) * double(p.out_size())) +
      weights;
  // The first three megabytes stay in the caches.
  const double bytes = elements * 4 * wide, cached = std::min(bytes, 3e6);
  return seconds + cached / 60e9 + (bytes - cached) / 16e9 + (workers > 1 ? 15e-6 : 8e-6);
}

// Tasks of several products in one parallel region, dealt out one by one.
struct TaskList {
  int64_t ends[kMaxPlans];
  int count = 0;

  int64_t total() const { return count ? ends[count - 1] : 0; }
  void add(int64_t tasks) { ends[count] = total() + tasks, ++count; }

  // fn(plan, task of the plan, scratch slot)
  template <class F>
  void run(int threads, const F& fn) const {
    std::atomic<int64_t> next{0};
    const auto work = [&](int slot) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < total();) {
        const int64_t plan = std::upper_bound(ends, ends + count, task) - ends;
        fn(plan, task - (plan ? ends[plan - 1] : 0), slot);
      }
    };
    if (threads == 1 || total() <= 1)
      work(0);
    else
      parallel_for(std::min<int64_t>(threads, total()),
                   [&](int64_t, int64_t) { work(thread_index()); });
  }
};

void run(const ConvCall& call) {
  const Im2colKernels& kernels = im2col_kernels_for(call.dtype);
  const ConvProblem& p = call.problem;
  const int dtype = static_cast<int>(call.dtype);
  const Im2colScratch scratch = im2col_scratch(p, call.dtype, call.direction, kernels);
  // Workspace: a slot of scratch per thread, partial sums, packed weights.
  char* const slots = static_cast<char*>(call.workspace);
  char* const partial = slots + call.threads * scratch.bytes;
  char* const packed = partial + partial_bytes(p, call.dtype, call.direction);
  const auto slot_of = [&](int slot) { return slots + slot * scratch.bytes; };
  const int threads = p.macs() < kSerialMacs ? 1 : call.threads;
  const int64_t classes = im2col_classes(p, call.direction);
  Im2colGemm plans[kMaxPlans];
  for (int64_t first = 0; first < classes; first += kMaxPlans) {
    const int64_t count = std::min(kMaxPlans, classes - first);
    TaskList packing, products;
    int64_t used = 0;
    for (int64_t i = 0; i < count; ++i) {
      Im2colGemm& g = plans[i] = im2col_plan(call, first + i, kernels, threads);
      g.scratch = scratch;
      g.partial = partial;
      const int64_t bytes = im2col_packed_bytes(g, call.dtype, kernels);
      g.packed = bytes > 0 ? packed + used : nullptr;
      used += bytes;
      packing.add(g.pack_tasks());
      products.add(g.tasks());
    }
    packing.run(threads, [&](int64_t plan, int64_t task, int slot) {
      kernels.pack[dtype](plans[plan], task, slot_of(slot));
    });
    products.run(threads, [&](int64_t plan, int64_t task, int slot) {
      kernels.run_task[dtype](plans[plan], task, slot_of(slot));
    });
  }
  if (plans[0].slices > 1) {
    const auto reduce = [&](int64_t begin, int64_t end) {
      kernels.reduce[dtype](plans[0], begin, end);
    };
    if (threads == 1)
      reduce(0, p.K);
    else
      parallel_for(p.K, reduce);
  }
}

// In NCHW a chunk is a few pixels of every plane: each line of them in another page, which cost
// three times what a pass over whole planes does (256 filters of 56x56, N = 8).
int64_t moment_blocks(const ConvCall& call) {
  const Im2colGemm g = im2col_plan(call, 0, im2col_kernels_for(call.dtype), call.threads);
  return g.kind == Im2colKind::kDown ? g.row_chunks : 0;
}

}  // namespace

const ConvAlgorithm conv_im2col{"im2col", applicable, workspace, cost, run, moment_blocks};

}  // namespace fastconv::cpu
