// Lines of the normalisation passes for one instruction set; see norm.h.
//
// Bound by memory: stats reads a tensor once, fprop reads one (two with a residual) and writes one,
// sums reads two, dgrad reads two and writes one.
#include "norm_lines.h"

namespace fastconv::cpu::FC_ISA {
namespace {

constexpr int64_t kChunk = 512;  // elements of 16-bit storage that pass through fp32 at a time

template <class A>
Line<A> line_of(const NormPlan& g) {
  Line<A> l{};
  l.pitch = g.coef_pitch;
  l.activation = g.epilogue.activation;
  l.slope = static_cast<A>(g.epilogue.slope);
  l.affine = g.affine;
  l.centred = g.centred;
  const bool residual = g.epilogue.residual != nullptr;
  l.residual_after = g.epilogue.residual_after;
  l.residual_first = residual && !l.residual_after;
  l.residual_last = residual && l.residual_after;
  l.with_dresidual = g.dresidual != nullptr;
  return l;
}

template <class A>
struct Storage {  // of what accumulates in A
  DType dtype;
  FC_INLINE const char* at(const void* p, int64_t i) const {
    return static_cast<const char*>(p) + i * (dtype <= DType::kFloat64 ? sizeof(A) : 2);
  }
};
void load(DType dtype, const void* from, float* to, int64_t n) {
  if (dtype == DType::kBFloat16) return load_run(static_cast<const bf16*>(from), 1, to, n);
  load_run(static_cast<const f16*>(from), 1, to, n);
}
void store(DType dtype, const float* from, void* to, int64_t n) {
  if (dtype == DType::kBFloat16) return store_run(from, static_cast<bf16*>(to), 1, n);
  store_run(from, static_cast<f16*>(to), 1, n);
}
[[maybe_unused]] void load(DType, const void*, double*, int64_t) {}
[[maybe_unused]] void store(DType, const double*, void*, int64_t) {}

// What a pass reads and writes of n elements; null where it has no such operand.
struct Elements {
  int64_t n;
  const char *y, *dz, *residual;
  char *out, *dresidual;
};

// fn on them: where they are, or through buffers of fp32 for 16-bit storage. l has the
// coefficients.
template <class A>
void run_elements(LineFn<A> fn, Line<A> l, const Elements& e, DType dtype, bool one_channel) {
  if (dtype <= DType::kFloat64) {
    l.n = e.n;
    l.y = reinterpret_cast<const A*>(e.y);
    l.dz = e.dz ? reinterpret_cast<const A*>(e.dz) : l.y;
    l.residual = e.residual ? reinterpret_cast<const A*>(e.residual) : l.y;
    l.out = reinterpret_cast<A*>(e.out);
    l.dresidual = e.dresidual ? reinterpret_cast<A*>(e.dresidual) : l.out;
    return fn(l);
  }
  A buffer[5][kChunk];
  l.y = buffer[0], l.dz = buffer[1], l.residual = buffer[2];
  l.out = buffer[3], l.dresidual = buffer[4];
  for (int64_t i = 0; i < e.n; i += kChunk) {
    l.n = kChunk < e.n - i ? kChunk : e.n - i;
    load(dtype, e.y + 2 * i, buffer[0], l.n);
    if (e.dz) load(dtype, e.dz + 2 * i, buffer[1], l.n);
    if (e.residual) load(dtype, e.residual + 2 * i, buffer[2], l.n);
    fn(l);
    if (e.out) store(dtype, buffer[3], e.out + 2 * i, l.n);
    if (e.dresidual) store(dtype, buffer[4], e.dresidual + 2 * i, l.n);
    if (one_channel) continue;
    l.coefs += kChunk;
    if (l.sum_g) l.sum_g += kChunk, l.sum_gy += kChunk;
  }
}

// Elements [first, first + n) of line `index`; `to` is z, dy or null.
template <class A>
void run_line(const NormPlan& g, LineFn<A> fn, Line<A>& l, int64_t index, int64_t first, int64_t n,
              void* to) {
  const Storage<A> storage{g.dtype};
  const int64_t dense = index * g.length + first;
  const auto at = [&](const void* p, int64_t i) {
    return p ? const_cast<char*>(storage.at(p, i)) : nullptr;
  };
  run_elements(
      fn, l,
      Elements{n, at(g.y, g.y_line(index) + first), at(g.dz, dense), at(g.epilogue.residual, dense),
               at(to, to == g.z ? g.z_line(index) + first : dense),
               to ? at(g.dresidual, dense) : nullptr},
      g.dtype, !g.channels_last);
}

template <class A>
void elementwise(const NormPlan& g, LineFn<A> fn, int64_t begin, int64_t end, void* to) {
  Line<A> l = line_of<A>(g);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t index = task / g.parts, first = task % g.parts * g.part;
    const int64_t left = g.length - first;
    if (g.affine) l.coefs = static_cast<const A*>(g.coefs) + (g.channels_last ? 0 : index % g.K);
    if (left > 0) run_line(g, fn, l, index, first, left < g.part ? left : g.part, to);
  }
}

// The lines of a reduction's task, `step` apart, and a part of each.
struct Block {
  int64_t block, channel, first_line, step, lines, first, n;
};
FC_INLINE Block block_at(const NormPlan& g, int64_t task) {
  Block b;
  if (g.channels_last) {
    const int64_t line = task * g.block_lines, left = g.lines - line;
    return {task, 0, line, 1, left < g.block_lines ? left : g.block_lines, 0, g.length};
  }
  const int64_t part = task % g.line_parts, images = task / g.line_parts / g.K;
  b.channel = task / g.line_parts % g.K;
  b.block = images * g.line_parts + part;
  b.first_line = images * g.block_lines * g.K + b.channel;
  b.step = g.K;
  const int64_t left = g.lines / g.K - images * g.block_lines;
  b.lines = left < g.block_lines ? left : g.block_lines;
  b.first = part * g.block_part;
  b.n = g.length - b.first < g.block_part ? g.length - b.first : g.block_part;
  return b;
}

// Both sums of a block: for every channel in `sum` and `sum + pitch`, or of one channel.
template <class A>
FC_INLINE void sum_block(const NormPlan& g, LineFn<A> fn, Line<A>& l, const Block& b, A* sum) {
  constexpr int lanes = Simd<A>::lanes;
  A partial[2 * kSumVectors * lanes];
  const int64_t pitch = g.channels_last ? g.coef_pitch : kSumVectors * lanes;
  l.sum_g = g.channels_last ? sum : partial;
  l.sum_gy = l.sum_g + pitch;
  for (int64_t i = 0; i < 2 * pitch; ++i) l.sum_g[i] = 0;
  for (int64_t i = 0; i < b.lines; ++i)
    run_line<A>(g, fn, l, b.first_line + i * b.step, b.first, b.n, nullptr);
  if (g.channels_last) return;
  for (int v = 0; v < 2; ++v) {
    A* p = partial + v * pitch;
    for (int u = 1; u < kSumVectors; ++u) vstore(p, vload(p) + vload(p + u * lanes));
    sum_lanes(p, 1, sum + v * g.coef_pitch);
  }
}

template <class A>
void sums(const NormPlan& g, int64_t begin, int64_t end, void* slot) {
  Line<A> l = line_of<A>(g);
  A* sum = static_cast<A*>(slot);
  for (int64_t task = begin; task < end; ++task) {
    const Block b = block_at(g, task);
    l.coefs = static_cast<const A*>(g.coefs) + b.channel;
    sum_block(g, sums_fn<A>(g), l, b, sum);
    double* out = g.partial + b.block * g.K + b.channel;
    const int64_t channels = g.channels_last ? g.K : 1;
    for (int v = 0; v < 2; ++v, out += g.blocks * g.K)
      for (int64_t k = 0; k < channels; ++k)
        out[k] = static_cast<double>(sum[v * g.coef_pitch + k]);
  }
}

template <class A>
void stats(const NormPlan& g, int64_t begin, int64_t end, void* slot) {
  Line<A> l = line_of<A>(g);
  A *sum = static_cast<A*>(slot), *square = sum + g.coef_pitch, *centre = square + g.coef_pitch;
  l.coefs = centre;
  for (int64_t task = begin; task < end; ++task) {
    const Block b = block_at(g, task);
    const double count = static_cast<double>(b.lines * b.n / (g.channels_last ? g.K : 1));
    const int64_t channels = g.channels_last ? g.K : 1;
    for (int64_t k = 0; k < g.coef_pitch; ++k) centre[k] = 0;
    sum_block(g, stats_fn<A>(g), l, b, sum);
    for (int64_t k = 0; k < channels; ++k) centre[k] = sum[k] / static_cast<A>(count);
    sum_block(g, stats_fn<A>(g), l, b, sum);
    double* mean = g.partial + b.block * g.K + b.channel;
    double* m2 = mean + g.blocks * g.K;
    for (int64_t k = 0; k < channels; ++k) {
      const double rest = static_cast<double>(sum[k]);
      mean[k] = static_cast<double>(centre[k]) + rest / count;
      m2[k] = static_cast<double>(square[k]) - rest * rest / count;
    }
  }
}

template <class A>
void fprop(const NormPlan& g, int64_t begin, int64_t end) {
  elementwise(g, fprop_fn<A>(g), begin, end, g.z);
}
template <class A>
void dgrad(const NormPlan& g, int64_t begin, int64_t end) {
  elementwise(g, dgrad_fn<A>(g), begin, end, g.dy);
}

// Tiles are a few vectors wide, so that what a line costs beside its elements would show.
template <class A>
FC_INLINE void run_tile(const Epilogue& e, A* v, int64_t ld, const A* residual, int64_t residual_ld,
                        int64_t rows, int64_t n) {
  using vec = vec_t<A>;
  constexpr int lanes = Simd<A>::lanes;
  const bool first = residual && !e.residual_after, last = residual && e.residual_after;
  const int64_t whole = n - n % lanes;
  const vec slope = vsplat(static_cast<A>(e.slope)), zero{};
  for (int64_t i = 0; i < rows && whole > 0; ++i) {
    A* row = v + i * ld;
    if (e.activation == Activation::kRelu && !residual) {
      for (int64_t j = 0; j < whole; j += lanes) {
        const vec x = vload(row + j);
        vstore(row + j, vkeep<A>(x, ~(x < zero)));
      }
      continue;
    }
    const A* from = residual ? residual + i * residual_ld : row;
    for (int64_t j = 0; j < whole; j += lanes) {
      vec x[1] = {vload(row + j)};
      if (first) x[0] += vload(from + j);
      vactivate<A>(e.activation, x, slope);
      if (last) x[0] += vload(from + j);
      vstore(row + j, x[0]);
    }
  }
  if (whole == n) return;
  Line<A> l{};
  l.n = n - whole;
  l.activation = e.activation;
  l.slope = static_cast<A>(e.slope);
  l.residual_first = first;
  l.residual_last = last;
  for (int64_t i = 0; i < rows; ++i) {
    l.y = l.dz = l.out = v + i * ld + whole;
    l.residual = residual ? residual + i * residual_ld + whole : l.y;
    fprop_line<A, true>(l);
  }
}

}  // namespace

void epilogue_tile(const Epilogue& e, float* v, int64_t ld, const float* residual,
                   int64_t residual_ld, int64_t rows, int64_t n) {
  run_tile(e, v, ld, residual, residual_ld, rows, n);
}
void epilogue_tile(const Epilogue& e, double* v, int64_t ld, const double* residual,
                   int64_t residual_ld, int64_t rows, int64_t n) {
  run_tile(e, v, ld, residual, residual_ld, rows, n);
}

extern const NormKernels norm_kernels;
const NormKernels norm_kernels{fprop<float>, dgrad<float>, stats<float>, sums<float>};

#if FC_VEC_BYTES == 16  // the narrowest set: its fp64 serves all
extern const NormKernels norm_kernels_fp64;
const NormKernels norm_kernels_fp64{fprop<double>, dgrad<double>, stats<double>, sums<double>};
#endif

}  // namespace fastconv::cpu::FC_ISA
