// The direct convolution's gather (fprop and dgrad; conv_direct.h says how they are one):
//   out[n,ko,i] = bias[ko] + sum_{ci,tap} in[n,ci, i*step + off(tap)] * w[ko,ci,tap]
// kPanel: a GEMM tile whose left operand is addressed indirectly, gemm_m = outputs of a tile,
//   gemm_n = 2 vectors of ko, gemm_k = (ci, tap) in blocks whose weight panel stays in L1.
// kRows: vectors of neighbouring outputs, weights broadcast; for few output channels per group.
// kLanes: depthwise, channels innermost in memory; vectors of channels.
// Determinism: each output is one sum in the order (ci block, ci, tap), whatever the threads.
#include "conv_direct.h"
#include "conv_direct_micro.h"
#include "conv_direct_stage.h"
#include "epilogue_isa.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A>
FC_INLINE A* slot_at(void* slot, int64_t bytes) {
  return reinterpret_cast<A*>(static_cast<char*>(slot) + bytes);
}

// Packed weights: kPanel, kRows [g][panel][ci][tap][panel width]; kLanes [tap][C padded].
template <class T>
void pack(const DirectPlan& g, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const T* w = static_cast<const T*>(g.w);
  A* packed = static_cast<A*>(const_cast<void*>(g.weights));
  const DirectAxis &at = g.axis[0], &ar = g.axis[1], &as = g.axis[2];
  if (g.kernel == DirectKernel::kLanes) {
    const int64_t pitch = g.lane_block * g.lane_blocks;
    for (int64_t c = begin; c < end; ++c) {
      A* dst = packed + c;
      for (int64_t t = 0; t < at.taps; ++t)
        for (int64_t r = 0; r < ar.taps; ++r)
          for (int64_t s = 0; s < as.taps; ++s, dst += pitch)
            *dst = c >= g.groups
                       ? A(0)
                       : to_acc(w[c * g.w_group + at.tap_filter[t] * g.w_tap[0] +
                                  ar.tap_filter[r] * g.w_tap[1] + as.tap_filter[s] * g.w_tap[2]]);
    }
    return;
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task / g.panels, panel = task % g.panels;
    const int64_t ko0 = panel * g.panel;
    const int64_t live = g.panel < g.Ko - ko0 ? g.panel : g.Ko - ko0;
    A* dst = packed + task * g.panel * g.Ci * g.taps;
    const T* from = w + group * g.w_group + ko0 * g.w_ko;
    for (int64_t ci = 0; ci < g.Ci; ++ci)
      for (int64_t t = 0; t < at.taps; ++t)
        for (int64_t r = 0; r < ar.taps; ++r)
          for (int64_t s = 0; s < as.taps; ++s, dst += g.panel) {
            const T* src = from + ci * g.w_ci + at.tap_filter[t] * g.w_tap[0] +
                           ar.tap_filter[r] * g.w_tap[1] + as.tap_filter[s] * g.w_tap[2];
            for (int64_t k = 0; k < live; ++k) dst[k] = to_acc(src[k * g.w_ko]);
            for (int64_t k = live; k < g.panel; ++k) dst[k] = A(0);
          }
  }
}

template <class T>
FC_INLINE acc_t<T> bias_at(const DirectPlan& g, int64_t k) {
  return g.bias ? to_acc(static_cast<const T*>(g.bias)[k]) : acc_t<T>(0);
}

// c [positions][NR] to planes, a row of the tile at a time.
template <class T>
void store_planes(const DirectPlan& g, const Finish<T>& finish, const Tile& t, const acc_t<T>* c,
                  int64_t NR, int64_t channels, T* out, const int64_t* out_at) {
  constexpr int64_t kRun = 64;
  acc_t<T> run[kRun];
  const int64_t positions = t.positions(), row = t.extent[2];
  const int64_t step = g.out.stride[4] * g.axis[2].out_step;
  for (int64_t k = 0; k < channels; ++k)
    for (int64_t i = 0; i < positions;) {
      const int64_t left = row - i % row, n = left < kRun ? left : kRun;
      for (int64_t j = 0; j < n; ++j) run[j] = c[(i + j) * NR + k];
      finish.store(run, out + k * g.out.stride[1] + out_at[i], step, n);
      i += n;
    }
}

// Of a task's channels [channel, .. + channels), which were stored and are still in a cache.
template <class T>
void tile_moments(const DirectPlan& g, const Tile& t, int64_t n, int64_t tile, int64_t channel,
                  int64_t channels) {
  const T* y = static_cast<const T*>(g.out.data) + n * g.out.stride[0] + channel * g.out.stride[1];
  MomentsPiece piece{y + out_offset(g, t, 0, 0, 0), channels, g.out.stride[1], {}, {}};
  for (int i = 0; i < 3; ++i) {
    piece.extent[i] = t.extent[i];
    piece.step[i] = g.out.stride[2 + i] * g.axis[i].out_step;
  }
  add_moments<T>(piece, g.moments, n * tile_count(g) + tile, channel, 0);
}

template <class T>
void run_panel(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int NR = kPanelVectors * Simd<A>::lanes;
  A* staged = slot_at<A>(slot, 0);
  A* acc = slot_at<A>(slot, g.slot_acc);
  int32_t* row = slot_at<int32_t>(slot, g.slot_row);
  int64_t* out_at = slot_at<int64_t>(slot, g.slot_out);
  const int64_t tiles = tile_count(g);
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  const Finish<T> finish(g.epilogue, g.out.data);
  int64_t last_tile = -1, positions = 0, copy_count = 0;
  Tile t{};
  for (int64_t task = begin; task < end; ++task) {
    int64_t rest = task;
    const int64_t split = rest % g.panel_splits;
    rest /= g.panel_splits;
    const int64_t group = rest % g.groups;
    rest /= g.groups;
    const int64_t tile = rest % tiles, n = rest / tiles;
    if (tile != last_tile) {
      t = tile_at(g, tile);
      positions = 0;
      for (int64_t o = 0; o < t.extent[0]; ++o)
        for (int64_t p = 0; p < t.extent[1]; ++p)
          for (int64_t q = 0; q < t.extent[2]; ++q, ++positions) {
            row[positions] = stage_row(g, o, p, q);
            out_at[positions] = out_offset(g, t, o, p, q);
          }
      copy_count = stage_begin(g, t, copies, staged);
      last_tile = tile;
    }
    const int64_t panel0 = split * g.panels_per_task;
    const int64_t panel1 =
        panel0 + g.panels_per_task < g.panels ? panel0 + g.panels_per_task : g.panels;
    for (int64_t b = 0; b < g.ci_blocks; ++b) {
      const int64_t ci0 = b * g.ci_block;
      const int64_t ci = g.ci_block < g.Ci - ci0 ? g.ci_block : g.Ci - ci0;
      stage<T>(g, copies, copy_count,
               static_cast<const T*>(g.in.data) + n * g.in.stride[0] +
                   (group * g.Ci + ci0) * g.in.stride[1],
               ci, staged);
      for (int64_t panel = panel0; panel < panel1; ++panel) {
        const A* w = static_cast<const A*>(g.weights) +
                     ((group * g.panels + panel) * g.Ci + ci0) * g.taps * NR;
        A* c = acc + (panel - panel0) * positions * NR;
        balanced(positions, kPanelRows, [&](int64_t first, int64_t count) {
          panel_fn<A>(count)(ci * g.taps, staged, row + first, g.col, w, c + first * NR, b > 0);
        });
      }
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      A* c = acc + (panel - panel0) * positions * NR;
      const int64_t ko0 = panel * NR;
      const int64_t live = NR < g.Ko - ko0 ? NR : g.Ko - ko0;
      const int64_t k0 = group * g.Ko + ko0;
      T* out = static_cast<T*>(const_cast<void*>(g.out.data)) + n * g.out.stride[0] +
               k0 * g.out.stride[1];
      if (g.out.stride[1] == 1 || !finish.plain) {
        A bias[NR];
        for (int64_t k = 0; k < NR; ++k) bias[k] = k < live ? bias_at<T>(g, k0 + k) : A(0);
        for (int64_t i = 0; i < positions; ++i)
          for (int v = 0; v < NR; v += Simd<A>::lanes)
            vstore(c + i * NR + v, vload(c + i * NR + v) + vload(bias + v));
        finish.early(c, 0, 1, positions * NR);
        if (g.out.stride[1] == 1)
          for (int64_t i = 0; i < positions; ++i)
            finish.store(c + i * NR, out + out_at[i], 1, live);
        else
          store_planes(g, finish, t, c, NR, live, out, out_at);
      } else {
        for (int64_t k = 0; k < live; ++k) {
          const A bias = bias_at<T>(g, k0 + k);
          T* plane = out + k * g.out.stride[1];
          for (int64_t i = 0; i < positions; ++i) from_acc(c[i * NR + k] + bias, plane + out_at[i]);
        }
      }
    }
    if (g.moments.K > 0) {
      const int64_t ko0 = panel0 * NR, ko1 = panel1 * NR < g.Ko ? panel1 * NR : g.Ko;
      tile_moments<T>(g, t, n, tile, group * g.Ko + ko0, ko1 - ko0);
    }
  }
}

template <class T>
void run_rows(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  constexpr bool same_type = sizeof(T) == sizeof(A);
  A* staged = slot_at<A>(slot, 0);
  A* acc = slot_at<A>(slot, g.slot_acc);
  int32_t* row = slot_at<int32_t>(slot, g.slot_row);
  // [2][vectors]: where a vector of results goes, in `acc` and in `out`
  int64_t* acc_at = slot_at<int64_t>(slot, g.slot_out);
  int64_t* out_at = acc_at + g.tile_positions;
  const int64_t tiles = tile_count(g);
  const int64_t out_w = g.out.stride[4] * g.axis[2].out_step;
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  const Finish<T> finish(g.epilogue, g.out.data);
  int64_t last_tile = -1, vectors = 0, live = 0, copy_count = 0;
  Tile t{};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % g.groups;
    const int64_t tile = task / g.groups % tiles, n = task / g.groups / tiles;
    if (tile != last_tile) {
      t = tile_at(g, tile);
      live = lanes < t.extent[2] ? lanes : t.extent[2];
      vectors = 0;
      for (int64_t o = 0; o < t.extent[0]; ++o)
        for (int64_t p = 0; p < t.extent[1]; ++p)
          for (int64_t q0 = 0; q0 < t.extent[2]; q0 += lanes, ++vectors) {
            // The last vector of a row overlaps the one before it: no partial stores.
            const int64_t q = q0 + live > t.extent[2] ? t.extent[2] - live : q0;
            row[vectors] = stage_row(g, o, p, q);
            acc_at[vectors] = vectors * lanes;
            out_at[vectors] = out_offset(g, t, o, p, q);
          }
      copy_count = stage_begin(g, t, copies, staged);
      last_tile = tile;
    }
    const bool direct = same_type && out_w == 1 && live == lanes && g.ci_blocks == 1;
    T* out = static_cast<T*>(const_cast<void*>(g.out.data)) + n * g.out.stride[0] +
             group * g.Ko * g.out.stride[1];
    for (int64_t b = 0; b < g.ci_blocks; ++b) {
      const int64_t ci0 = b * g.ci_block;
      const int64_t ci = g.ci_block < g.Ci - ci0 ? g.ci_block : g.Ci - ci0;
      stage<T>(g, copies, copy_count,
               static_cast<const T*>(g.in.data) + n * g.in.stride[0] +
                   (group * g.Ci + ci0) * g.in.stride[1],
               ci, staged);
      for (int64_t panel = 0; panel < g.panels; ++panel) {
        const int64_t ko0 = panel * g.panel;
        const int64_t nb = g.panel < g.Ko - ko0 ? g.panel : g.Ko - ko0;
        A bias[kMaxRowOutputs];
        for (int64_t k = 0; k < nb; ++k) bias[k] = bias_at<T>(g, group * g.Ko + ko0 + k);
        VectorArgs<A> m{};
        m.depth = ci * g.taps;
        m.a = staged;
        m.col = g.col;
        m.b = static_cast<const A*>(g.weights) +
              ((group * g.panels + panel) * g.Ci + ci0) * g.taps * g.panel;
        m.b_j = g.panel;
        m.init = b > 0 ? Init::kAccumulate : g.bias ? Init::kSplat : Init::kZero;
        m.init_from = bias;
        if (direct) {
          m.c = reinterpret_cast<A*>(out + ko0 * g.out.stride[1]);
          m.c_n = g.out.stride[1];
        } else {
          m.c = acc + ko0 * vectors * lanes;
          m.c_n = vectors * lanes;
        }
        balanced(vectors, vector_rows(nb), [&](int64_t first, int64_t count) {
          m.row = row + first;
          m.c_row = (direct ? out_at : acc_at) + first;
          vector_fn<A, Operand::kSplat>(count, nb)(m);
        });
        if constexpr (same_type) {
          if (direct && !finish.plain)
            for (int64_t k = 0; k < nb; ++k)
              for (int64_t o = 0; o < t.extent[0]; ++o)
                finish.in_place(m.c + k * m.c_n + out_offset(g, t, o, 0, 0),
                                g.out.stride[3] * g.axis[1].out_step, t.extent[1], t.extent[2]);
        }
      }
    }
    if (direct) continue;
    finish.early(acc, 0, 1, g.Ko * vectors * lanes);
    for (int64_t k = 0; k < g.Ko; ++k)
      for (int64_t v = 0; v < vectors; ++v)
        finish.store(acc + (k * vectors + v) * lanes, out + k * g.out.stride[1] + out_at[v], out_w,
                     live);
  }
}

template <class T>
void run_lanes(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  constexpr bool same_type = sizeof(T) == sizeof(A);
  A* staged = slot_at<A>(slot, 0);
  A* acc = slot_at<A>(slot, g.slot_acc);
  int32_t* row = slot_at<int32_t>(slot, g.slot_row);
  int64_t* acc_at = slot_at<int64_t>(slot, g.slot_out);
  int64_t* out_at = acc_at + g.tile_positions;
  const int64_t tiles = tile_count(g);
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  const Finish<T> finish(g.epilogue, g.out.data);
  int64_t last_tile = -1, positions = 0, copy_count = 0;
  Tile t{};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task % g.lane_blocks * g.lane_block;
    const int64_t tile = task / g.lane_blocks % tiles, n = task / g.lane_blocks / tiles;
    const int64_t channels = g.lane_block < g.groups - c0 ? g.lane_block : g.groups - c0;
    if (tile != last_tile) {
      t = tile_at(g, tile);
      positions = 0;
      for (int64_t o = 0; o < t.extent[0]; ++o)
        for (int64_t p = 0; p < t.extent[1]; ++p)
          for (int64_t q = 0; q < t.extent[2]; ++q, ++positions) {
            row[positions] = stage_row(g, o, p, q);
            acc_at[positions] = positions * lanes;
            out_at[positions] = out_offset(g, t, o, p, q);
          }
      copy_count = stage_begin(g, t, copies, staged);
      last_tile = tile;
    }
    stage<T>(g, copies, copy_count,
             static_cast<const T*>(g.in.data) + n * g.in.stride[0] + c0 * g.in.stride[1], channels,
             staged);
    T* out =
        static_cast<T*>(const_cast<void*>(g.out.data)) + n * g.out.stride[0] + c0 * g.out.stride[1];
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t live = lanes < channels - c ? lanes : channels - c;
      const bool direct = same_type && g.out.stride[1] == 1 && live == lanes;
      A bias[lanes];
      for (int64_t k = 0; k < lanes; ++k) bias[k] = k < live ? bias_at<T>(g, c0 + c + k) : A(0);
      VectorArgs<A> m{};
      m.depth = g.taps;
      m.a = staged + c;
      m.col = g.col;
      m.b = static_cast<const A*>(g.weights) + c0 + c;
      m.b_j = g.lane_block * g.lane_blocks;
      m.init = Init::kVector;
      m.init_from = bias;
      m.c = direct ? reinterpret_cast<A*>(out + c) : acc;
      balanced(positions, vector_rows(1), [&](int64_t first, int64_t count) {
        m.row = row + first;
        m.c_row = (direct ? out_at : acc_at) + first;
        vector_fn<A, Operand::kVector>(count, 1)(m);
      });
      if constexpr (same_type) {
        if (direct && !finish.plain)
          for (int64_t o = 0; o < t.extent[0]; ++o)
            for (int64_t p = 0; p < t.extent[1]; ++p)
              finish.in_place(m.c + out_offset(g, t, o, p, 0), g.out.stride[4] * g.axis[2].out_step,
                              t.extent[2], lanes);
      }
      if (direct) continue;
      finish.early(acc, 0, 1, positions * lanes);
      for (int64_t i = 0; i < positions; ++i)
        finish.store(acc + i * lanes, out + c * g.out.stride[1] + out_at[i], g.out.stride[1], live);
    }
    if (g.moments.K > 0) tile_moments<T>(g, t, n, tile, c0, channels);
  }
}

template <class T>
void run_typed(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  switch (g.kernel) {
    case DirectKernel::kPanel: return run_panel<T>(g, begin, end, slot);
    case DirectKernel::kRows: return run_rows<T>(g, begin, end, slot);
    case DirectKernel::kLanes: return run_lanes<T>(g, begin, end, slot);
  }
}

void run(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  switch (g.dtype) {
    case DType::kFloat32: return run_typed<float>(g, begin, end, slot);
#if FC_VEC_BYTES < 64
    case DType::kFloat64: return run_typed<double>(g, begin, end, slot);
#else
    case DType::kFloat64: return;  // see isa.h
#endif
    case DType::kBFloat16: return run_typed<bf16>(g, begin, end, slot);
    case DType::kFloat16: return run_typed<f16>(g, begin, end, slot);
  }
}

void pack_any(const DirectPlan& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32: return pack<float>(g, begin, end);
#if FC_VEC_BYTES < 64
    case DType::kFloat64: return pack<double>(g, begin, end);
#else
    case DType::kFloat64: return;  // see isa.h
#endif
    case DType::kBFloat16: return pack<bf16>(g, begin, end);
    case DType::kFloat16: return pack<f16>(g, begin, end);
  }
}

}  // namespace

extern const DirectGatherTable direct_gather;
const DirectGatherTable direct_gather{FC_VEC_BYTES, pack_any, run};
}  // namespace fastconv::cpu::FC_ISA
