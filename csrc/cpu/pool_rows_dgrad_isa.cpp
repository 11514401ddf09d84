// Pooling of NCHW, backward: a gather, one row of dx at a time, vectors over Q.
//
// Row h of dx is what the output rows that reach it send back: sums add those rows up, then every
// tap s adds them, shifted, to the row's phases (pool_phases.h); a maximum sends dy to the one tap
// that the byte beside it names. A row belongs to one thread, in the order of the outputs.
// Bytes: dy (index, or x and y) and dx once from memory. FLOPs: R S / stride per input for maxima,
// R / stride + S / stride for sums. Bound by memory, maxima by the compares (9 per output at 3x3).
// Deterministic.
#include "pool_phases.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class T, PoolKind KIND>
struct RowsBackward {
  using A = acc_t<T>;
  static constexpr int64_t lanes = Simd<A>::lanes;
  const CpuPoolCall& call;
  const PoolProblem& p;
  const Phases phases;
  const int64_t Q;
  A *phase, *sent, *row, *x, *y, *count;
  lane_t<A>* index;
  int64_t bytes = 0;

  FC_INLINE RowsBackward(const CpuPoolCall& c, void* scratch)
      : call(c), p(c.p), phases(c.p, lanes), Q(phases.outputs) {
    char* at = static_cast<char*>(scratch);
    const auto take = [&](int64_t n) {
      A* here = scratch == nullptr ? nullptr : reinterpret_cast<A*>(at + bytes);
      bytes += (n * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
      return here;
    };
    phase = take(phases.size()), sent = take(Q), row = take(p.in[2]), x = take(p.in[2]);
    y = take(Q), count = take(Q);
    index = reinterpret_cast<lane_t<A>*>(take(Q));
    if (scratch == nullptr) return;
    for (int64_t q = 0; q < Q; ++q) {
      sent[q] = y[q] = 0;
      index[q] = -1;
      count[q] = KIND != PoolKind::kMax && q < p.out[2] ? static_cast<A>(c.count[2][q]) : A(1);
    }
  }

  // dy of one output row to the phases, tap by tap, where the index names the tap.
  FC_INLINE void scatter_row(int64_t at, int64_t tap) const {
    load_run(static_cast<const T*>(call.dy) + at, 1, sent, p.out[2]);
    const uint8_t* bytes = static_cast<const uint8_t*>(call.index) + at;
    for (int64_t q = 0; q < p.out[2]; ++q) index[q] = bytes[q];
    for (int64_t s = 0; s < p.kernel[2]; ++s) {
      A* to = phase + phases.place(s);
      const mask_t<A> mine = lanes_of<A>(tap + s);
      for (int64_t q = 0; q < Q; q += lanes) {
        const mask_t<A> here = load_lanes<A>(index + q) == mine;
        vstore(to + q, vload(to + q) + vkeep<A>(vload(sent + q), here));
      }
    }
  }

  // Adds the share of one output row to `sent`.
  FC_INLINE void add_row(int64_t at, double rows) const {
    load_run(static_cast<const T*>(call.dy) + at, 1, row_buffer(), p.out[2]);
    if (KIND == PoolKind::kLp) load_run(static_cast<const T*>(call.y) + at, 1, y, p.out[2]);
    const vec_t<A> scale = vsplat(static_cast<A>(call.scale)), height = vsplat(A(rows));
    for (int64_t q = 0; q < Q; q += lanes) {
      vec_t<A> g = vload(row_buffer() + q);
      if (KIND == PoolKind::kLp) g = lp_slope<A>(g, vload(y + q), call.power) * scale;
      vstore(sent + q, vload(sent + q) + g / (height * vload(count + q)));
    }
  }
  // `index` is not used by sums: its place holds dy.
  FC_INLINE A* row_buffer() const { return reinterpret_cast<A*>(index); }

  FC_INLINE void input_row(int64_t task) const {
    const int64_t h = task % p.in[1], d = task / p.in[1] % p.in[0];
    const int64_t plane = task / p.in[1] / p.in[0];
    const PoolOutputs o = pool_outputs(p, 0, d), r = pool_outputs(p, 1, h);
    std::memset(phase, 0, phases.size() * sizeof(A));
    if (KIND != PoolKind::kMax) {
      std::memset(sent, 0, Q * sizeof(A));
      std::memset(row_buffer() + p.out[2], 0, (Q - p.out[2]) * sizeof(A));
    }
    for (int64_t i = o.first; i < o.last; ++i) {
      const int64_t t = pool_tap_on(p, 0, i, d);
      if (t < 0) continue;
      for (int64_t j = r.first; j < r.last; ++j) {
        const int64_t rr = pool_tap_on(p, 1, j, h);
        if (rr < 0) continue;
        const int64_t at = ((plane * p.out[0] + i) * p.out[1] + j) * p.out[2];
        if (KIND == PoolKind::kMax)
          scatter_row(at, (t * p.kernel[1] + rr) * p.kernel[2]);
        else
          add_row(at, call.count[0][i] * call.count[1][j]);
      }
    }
    if (KIND != PoolKind::kMax)
      for (int64_t s = 0; s < p.kernel[2]; ++s) {
        A* to = phase + phases.place(s);
        for (int64_t q = 0; q < Q; q += lanes) vstore(to + q, vload(to + q) + vload(sent + q));
      }
    join_phases(phases, phase, row);
    const int64_t at = task * p.in[2];
    if (KIND == PoolKind::kLp && call.power != 1) {
      load_run(static_cast<const T*>(call.x) + at, 1, x, p.in[2]);
      int64_t w = 0;
      for (; w + lanes <= p.in[2]; w += lanes)
        vstore(row + w, vload(row + w) * vpow<A>(vload(x + w), call.power - 1));
      for (; w < p.in[2]; ++w) row[w] *= vpow<A>(vsplat(x[w]), call.power - 1)[0];
    }
    store_run(row, static_cast<T*>(call.result) + at, 1, p.in[2]);
  }
};

template <class T, PoolKind KIND>
void run_as(const CpuPoolCall& c, int64_t begin, int64_t end, void* scratch) {
  const RowsBackward<T, KIND> rows(c, scratch);
  for (int64_t task = begin; task < end; ++task) rows.input_row(task);
}

template <class T>
void run_typed(const CpuPoolCall& c, int64_t begin, int64_t end, void* scratch) {
  if (c.kind == PoolKind::kMax) return run_as<T, PoolKind::kMax>(c, begin, end, scratch);
  if (c.kind == PoolKind::kSum) return run_as<T, PoolKind::kSum>(c, begin, end, scratch);
  return run_as<T, PoolKind::kLp>(c, begin, end, scratch);
}

int64_t tasks(const CpuPoolCall& c, int) { return c.p.N * c.p.C * c.p.in[0] * c.p.in[1]; }
int64_t scratch(const CpuPoolCall& c) {
  if (c.dtype == DType::kFloat64) return RowsBackward<double, PoolKind::kMax>(c, nullptr).bytes;
  return RowsBackward<float, PoolKind::kMax>(c, nullptr).bytes;
}
void run(const CpuPoolCall& c, int64_t begin, int64_t end, int, void* scratch) {
  switch (c.dtype) {
    case DType::kFloat32: return run_typed<float>(c, begin, end, scratch);
    case DType::kFloat64: return run_typed<double>(c, begin, end, scratch);
    case DType::kBFloat16: return run_typed<bf16>(c, begin, end, scratch);
    case DType::kFloat16: return run_typed<f16>(c, begin, end, scratch);
  }
}

}  // namespace

extern const PoolTable pool_rows_dgrad;
const PoolTable pool_rows_dgrad = {tasks, scratch, run};

}  // namespace fastconv::cpu::FC_ISA
