// Plans of the normalisation passes, their threads, and the second stage of the reductions.
//
// Source: Ioffe and Szegedy, "Batch Normalization", 2015.
#include "norm.h"

#include <algorithm>

#include "parallel.h"

namespace fastconv::cpu {
FC_DECLARE_ISA_TABLE(NormKernels, norm_kernels)
// fp64 is for checking gradients: compiled once, in the narrowest set.
namespace baseline {
extern const NormKernels norm_kernels_fp64;
}

namespace {

// Elements from which a second thread repays its wake-up.
constexpr int64_t kThreadedElements = 1 << 15;
// Elementwise passes share out lines in parts of so many elements.
constexpr int64_t kPart = 1 << 14;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t acc_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }
int64_t round_line(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

const NormKernels& kernels_of(DType dtype) {
  return dtype == DType::kFloat64 ? baseline::norm_kernels_fp64 : norm_kernels_active();
}

bool reduces(NormPass pass) { return pass == NormPass::kStats || pass == NormPass::kSums; }

// Both layouts are the same memory where images have one pixel, or all have one channel: then in
// the one of longer lines.
NormCall in_longer_lines(NormCall c) {
  if (c.K == 1 && c.epilogue.y_channels <= 1) {
    c.size *= c.N;
    c.N = 1;
    c.channels_last = false;
  } else if (c.size == 1) {
    c.channels_last = true;
  }
  return c;
}

NormPlan make_plan(NormPass pass, const NormCall& c) {
  NormPlan g{};
  g.dtype = c.dtype;
  g.epilogue = c.epilogue;
  g.K = c.K;
  g.channels_last = c.channels_last;
  g.affine = c.mean != nullptr;
  g.centred = c.sum_g != nullptr;
  const int64_t pitch = c.epilogue.y_channels > 0 ? c.epilogue.y_channels : c.K;
  if (g.channels_last) {
    g.lines = c.N * c.size, g.length = c.K;
    g.image_lines = 1, g.y_image = c.K, g.z_image = pitch;
  } else {
    g.lines = c.N * c.K, g.length = c.size;
    g.image_lines = c.K, g.y_image = c.K * c.size, g.z_image = pitch * c.size;
  }
  g.y = c.y, g.dz = c.dz, g.z = c.z, g.dy = c.dy, g.dresidual = c.dresidual;
  g.coef_pitch = ceil_div(c.K, 16) * 16;
  if (!reduces(pass)) {
    g.parts = g.channels_last ? 1 : ceil_div(g.length, kPart);
    g.part = ceil_div(g.length, g.parts);
    g.tasks = g.lines * g.parts;
  } else if (g.channels_last) {
    g.line_parts = 1, g.block_part = g.length;
    g.block_lines = std::clamp<int64_t>(kNormLastBlock / c.K, 1, kNormBlockLines);
    g.blocks = g.tasks = ceil_div(g.lines, g.block_lines);
  } else {
    g.line_parts = ceil_div(c.size, kNormBlock);
    g.block_part = ceil_div(c.size, g.line_parts);
    g.line_parts = ceil_div(c.size, g.block_part);
    g.block_lines = std::max<int64_t>(1, kNormBlock / c.size);
    g.blocks = ceil_div(c.N, g.block_lines) * g.line_parts;
    g.tasks = g.blocks * c.K;
  }
  return g;
}

struct Scratch {
  int64_t coefs, partial, slot;
};

Scratch scratch_of(NormPass pass, const NormPlan& g) {
  Scratch s{};
  if (g.affine) s.coefs = kNormCoefs * g.coef_pitch * acc_bytes(g.dtype);
  if (reduces(pass)) {
    s.partial = round_line(2 * g.blocks * g.K * int64_t{sizeof(double)});
    s.slot = kNormSlotVectors * g.coef_pitch * acc_bytes(g.dtype);
  }
  return s;
}

template <class A>
void fill_coefs(const NormCall& c, const NormPlan& g, A* coefs) {
  const auto* mean = static_cast<const A*>(c.mean);
  const auto* rstd = static_cast<const A*>(c.rstd);
  const auto* weight = static_cast<const A*>(c.weight);
  const auto* bias = static_cast<const A*>(c.bias);
  const auto* sum_g = static_cast<const A*>(c.sum_g);
  const auto* sum_gy = static_cast<const A*>(c.sum_gy);
  const int64_t pitch = g.coef_pitch;
  for (int64_t k = 0; k < pitch; ++k) {
    A* at = coefs + k;
    const bool live = k < c.K;
    const A scale = !live ? A(0) : weight ? weight[k] * rstd[k] : rstd[k];
    at[kNormMean * pitch] = live ? mean[k] : A(0);
    at[kNormScale * pitch] = scale;
    at[kNormBias * pitch] = live && bias ? bias[k] : A(0);
    const bool centred = live && sum_g != nullptr;
    const double r = live ? double(rstd[k]) : 0.0;
    at[kNormSlope * pitch] =
        centred ? static_cast<A>(double(scale) * r * r * double(sum_gy[k]) / c.count) : A(0);
    at[kNormOffset * pitch] =
        centred ? static_cast<A>(double(scale) * double(sum_g[k]) / c.count) : A(0);
  }
}

// How many values of a channel block b has.
int64_t block_count(const NormCall& c, const NormPlan& g, int64_t b) {
  if (g.channels_last) return std::min(g.block_lines, g.lines - b * g.block_lines);
  const int64_t images = b / g.line_parts, part = b % g.line_parts;
  return std::min(g.block_lines, c.N - images * g.block_lines) *
         std::min(g.block_part, g.length - part * g.block_part);
}

// The blocks of some channels, whose sums stay in registers and the first cache level.
constexpr int64_t kMergeChannels = 32;

// Channels [kMergeChannels * begin, kMergeChannels * end) of the blocks' means and sums of squares
// about them, [blocks][K]. Means are merged as what they differ by from the first one, so that
// their number costs no digits.
template <class A, class Count>
void merge_blocks(const double* mean, const double* m2, int64_t blocks, int64_t K, int64_t begin,
                  int64_t end, const Count& count_of, A* out_mean, A* out_m2) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t k0 = task * kMergeChannels, channels = std::min(kMergeChannels, K - k0);
    double offset[kMergeChannels] = {}, square[kMergeChannels];
    std::copy(m2 + k0, m2 + k0 + channels, square);
    double count = count_of(0);
    for (int64_t b = 1; b < blocks; ++b) {
      const double n = count_of(b);
      const double share = n / (count + n), weight = count * share;
      const double *block_mean = mean + b * K + k0, *block_m2 = m2 + b * K + k0;
      for (int64_t k = 0; k < channels; ++k) {
        const double delta = block_mean[k] - mean[k0 + k] - offset[k];
        offset[k] += delta * share;
        square[k] += block_m2[k] + delta * delta * weight;
      }
      count += n;
    }
    for (int64_t k = 0; k < channels; ++k) {
      out_mean[k0 + k] = static_cast<A>(mean[k0 + k] + offset[k]);
      out_m2[k0 + k] = static_cast<A>(square[k]);
    }
  }
}

// f(begin, end) on tasks of kMergeChannels channels.
template <class F>
void merge_tasks(int64_t K, int64_t blocks, int threads, const F& f) {
  const int64_t tasks = ceil_div(K, kMergeChannels);
  if (threads > 1 && tasks > 1 && blocks * K >= kThreadedElements)
    parallel_for(tasks, f);
  else
    f(0, tasks);
}

template <class A>
void merge_stats(const NormCall& c, const NormPlan& g) {
  merge_tasks(g.K, g.blocks, c.threads, [&](int64_t begin, int64_t end) {
    merge_blocks(
        g.partial, g.partial + g.blocks * g.K, g.blocks, g.K, begin, end,
        [&](int64_t b) { return static_cast<double>(block_count(c, g, b)); },
        static_cast<A*>(c.out_mean), static_cast<A*>(c.out_m2));
  });
}

template <class A>
void merge_left(const Moments& m, int64_t blocks, int threads, A* mean, A* m2) {
  merge_tasks(m.K, blocks, threads, [&](int64_t begin, int64_t end) {
    merge_blocks(
        m.mean, m.m2, blocks, m.K, begin, end, [&](int64_t b) { return m.count[b]; }, mean, m2);
  });
}

template <class A>
void merge_sums(const NormCall& c, const NormPlan& g) {
  for (int which = 0; which < 2; ++which) {
    double* total = g.partial + which * g.blocks * g.K;
    for (int64_t b = 1; b < g.blocks; ++b)
      for (int64_t k = 0; k < g.K; ++k) total[k] += total[b * g.K + k];
    A* out = static_cast<A*>(which == 0 ? c.out_sum_g : c.out_sum_gy);
    for (int64_t k = 0; k < g.K; ++k) out[k] = static_cast<A>(total[k]);
  }
}

template <class F>
void run_tasks(const NormPlan& g, int threads, const F& f) {
  if (threads > 1 && g.lines * g.length >= kThreadedElements && g.tasks > 1)
    parallel_for(g.tasks, [&](int64_t begin, int64_t end) { f(begin, end, thread_index()); });
  else
    f(0, g.tasks, 0);
}

// Without coefficients a whole image, or the whole tensor, is one line.
void join_lines(NormPlan& g) {
  g.length *= g.image_lines;
  g.lines /= g.image_lines;
  g.image_lines = 1;
  if (g.y_image == g.length && g.z_image == g.length) {
    g.length *= g.lines;
    g.lines = 1;
    g.y_image = g.z_image = g.length;
  }
  g.channels_last = false;
  g.parts = ceil_div(g.length, kPart);
  g.part = ceil_div(g.length, g.parts);
  g.tasks = g.lines * g.parts;
}

}  // namespace

int64_t norm_workspace(NormPass pass, const NormCall& call) {
  const Scratch s = scratch_of(pass, make_plan(pass, in_longer_lines(call)));
  return s.coefs + s.partial + call.threads * s.slot;
}

void norm_run(NormPass pass, const NormCall& call) {
  const NormCall c = in_longer_lines(call);
  NormPlan g = make_plan(pass, c);
  const NormKernels& kernels = kernels_of(c.dtype);
  const bool wide = c.dtype == DType::kFloat64;
  const Scratch s = scratch_of(pass, g);
  char* const workspace = static_cast<char*>(c.workspace);
  char* const slots = workspace + s.coefs + s.partial;
  g.partial = reinterpret_cast<double*>(workspace + s.coefs);
  g.coefs = workspace;
  if (g.affine) {
    if (wide)
      fill_coefs(c, g, reinterpret_cast<double*>(workspace));
    else
      fill_coefs(c, g, reinterpret_cast<float*>(workspace));
  }
  switch (pass) {
    case NormPass::kFprop:
      if (!g.affine) join_lines(g);
      run_tasks(g, c.threads, [&](int64_t b, int64_t e, int) { kernels.fprop(g, b, e); });
      return;
    case NormPass::kDgrad:
      run_tasks(g, c.threads, [&](int64_t b, int64_t e, int) { kernels.dgrad(g, b, e); });
      return;
    case NormPass::kStats:
      run_tasks(g, c.threads, [&](int64_t b, int64_t e, int thread) {
        kernels.stats(g, b, e, slots + thread * s.slot);
      });
      return wide ? merge_stats<double>(c, g) : merge_stats<float>(c, g);
    case NormPass::kSums:
      run_tasks(g, c.threads, [&](int64_t b, int64_t e, int thread) {
        kernels.sums(g, b, e, slots + thread * s.slot);
      });
      return wide ? merge_sums<double>(c, g) : merge_sums<float>(c, g);
  }
}

void merge_moments(const Moments& moments, int64_t blocks, DType dtype, void* mean, void* m2,
                   int threads) {
  if (dtype == DType::kFloat64)
    merge_left(moments, blocks, threads, static_cast<double*>(mean), static_cast<double*>(m2));
  else
    merge_left(moments, blocks, threads, static_cast<float*>(mean), static_cast<float*>(m2));
}

}  // namespace fastconv::cpu
