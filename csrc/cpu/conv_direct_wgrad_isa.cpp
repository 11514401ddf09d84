// The direct convolution's weight gradient:
//   dw[k,c,tap] = sum_{n,i} dy[n,k,i] * x[n,c, i*step + off(tap)]
// kPanel: gemm_m = (c, tap), gemm_n = 2 vectors of k, gemm_k = the outputs of a tile.
// kRows: vectors of neighbouring outputs, one vector accumulator per (c, tap, k), added across its
//   lanes at the end; for few output channels per group.
// kLanes: depthwise, channels innermost in memory; vectors of channels.
// Determinism: the sum over (n, tile) is split into chunks that depend on the problem alone; each
// chunk is summed in order, then the chunks in order.
#include "conv_direct.h"
#include "conv_direct_micro.h"
#include "conv_direct_stage.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A>
FC_INLINE A* slot_at(void* slot, int64_t bytes) {
  return reinterpret_cast<A*>(static_cast<char*>(slot) + bytes);
}

template <class T>
FC_INLINE const T* x_at(const DirectPlan& g, int64_t n, int64_t c) {
  return static_cast<const T*>(g.in.data) + n * g.in.stride[0] + c * g.in.stride[1];
}
template <class T>
FC_INLINE const T* dy_at(const DirectPlan& g, int64_t n, int64_t k) {
  return static_cast<const T*>(g.out.data) + n * g.out.stride[0] + k * g.out.stride[1];
}

// dy of `count` channels as [position][width], zeros beyond count.
template <class T>
void stage_dy_pixels(const DirectPlan& g, const Tile& t, const T* dy, int64_t count, int64_t width,
                     acc_t<T>* dst) {
  const int64_t step = g.axis[2].out_step * g.out.stride[4];
  for (int64_t o = 0; o < t.extent[0]; ++o)
    for (int64_t p = 0; p < t.extent[1]; ++p) {
      const T* row = dy + out_offset(g, t, o, p, 0);
      const int64_t n = t.extent[2];
      if (g.out.stride[1] == 1) {
        for (int64_t q = 0; q < n; ++q) {
          load_run(row + q * step, 1, dst + q * width, count);
          fill_zero(dst + q * width + count, width - count);
        }
      } else {
        for (int64_t k = 0; k < count; ++k)
          for (int64_t q = 0; q < n; ++q)
            dst[q * width + k] = to_acc(row[k * g.out.stride[1] + q * step]);
        for (int64_t k = count; k < width; ++k)
          for (int64_t q = 0; q < n; ++q) dst[q * width + k] = 0;
      }
      dst += n * width;
    }
}

struct Units {
  int64_t begin, end;
};
FC_INLINE Units units_of(const DirectPlan& g, int64_t chunk) {
  return {g.units * chunk / g.chunks, g.units * (chunk + 1) / g.chunks};
}

// partial: [chunk][group][panel][c][tap][NR]
template <class T>
void run_panel(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int NR = kPanelVectors * Simd<A>::lanes;
  A* staged = slot_at<A>(slot, 0);
  A* dy = slot_at<A>(slot, g.slot_dy);
  int32_t* col = slot_at<int32_t>(slot, g.slot_row);
  const int64_t tiles = tile_count(g);
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  int64_t last_tile = -1, positions = 0, copy_count = 0;
  Tile t{};
  for (int64_t task = begin; task < end; ++task) {
    int64_t rest = task;
    const int64_t ci0 = rest % g.ci_blocks * g.ci_block;
    rest /= g.ci_blocks;
    const int64_t panel0 = rest % g.panel_splits * g.panels_per_task;
    rest /= g.panel_splits;
    const int64_t group = rest % g.groups, chunk = rest / g.groups;
    const int64_t ci = g.ci_block < g.Ci - ci0 ? g.ci_block : g.Ci - ci0;
    const int64_t panel1 =
        panel0 + g.panels_per_task < g.panels ? panel0 + g.panels_per_task : g.panels;
    const Units units = units_of(g, chunk);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / tiles;
      if (unit % tiles != last_tile) {
        last_tile = unit % tiles;
        t = tile_at(g, last_tile);
        copy_count = stage_begin(g, t, copies, staged);
        positions = 0;
        for (int64_t o = 0; o < t.extent[0]; ++o)
          for (int64_t p = 0; p < t.extent[1]; ++p)
            for (int64_t q = 0; q < t.extent[2]; ++q) col[positions++] = stage_row(g, o, p, q);
      }
      stage<T>(g, copies, copy_count, x_at<T>(g, n, group * g.Ci + ci0), ci, staged);
      for (int64_t panel = panel0; panel < panel1; ++panel) {
        const int64_t ko0 = panel * NR;
        const int64_t live = NR < g.Ko - ko0 ? NR : g.Ko - ko0;
        stage_dy_pixels<T>(g, t, dy_at<T>(g, n, group * g.Ko + ko0), live, NR, dy);
        A* c = static_cast<A*>(g.partial) +
               (((chunk * g.groups + group) * g.panels + panel) * g.Ci + ci0) * g.taps * NR;
        balanced(ci * g.taps, kPanelRows, [&](int64_t first, int64_t count) {
          panel_fn<A>(count)(positions, staged, g.col + first, col, dy, c + first * NR,
                             unit > units.begin);
        });
      }
    }
  }
}

// partial: [chunk][group][k][c][tap]
template <class T>
void run_rows(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  constexpr bool same_type = sizeof(T) == sizeof(A);
  A* staged = slot_at<A>(slot, 0);
  A* acc = slot_at<A>(slot, g.slot_acc);  // [k][c][tap][lanes]
  A* dy = slot_at<A>(slot, g.slot_dy);    // [k][vector][lanes], full vectors first
  int32_t* col = slot_at<int32_t>(slot, g.slot_row);
  int64_t* acc_at = slot_at<int64_t>(slot, g.slot_out);
  const int64_t tiles = tile_count(g);
  const int64_t step = g.axis[2].out_step * g.out.stride[4];
  for (int64_t i = 0; i < g.ci_block * g.taps; ++i) acc_at[i] = i * lanes;
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  int64_t last_tile = -1, full = 0, tails = 0, copy_count = 0;
  Tile t{};
  for (int64_t task = begin; task < end; ++task) {
    int64_t rest = task;
    const int64_t ci0 = rest % g.ci_blocks * g.ci_block;
    rest /= g.ci_blocks;
    const int64_t group = rest % g.groups, chunk = rest / g.groups;
    const int64_t ci = g.ci_block < g.Ci - ci0 ? g.ci_block : g.Ci - ci0;
    const int64_t rows = ci * g.taps;
    const Units units = units_of(g, chunk);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / tiles;
      if (unit % tiles != last_tile) {
        last_tile = unit % tiles;
        t = tile_at(g, last_tile);
        copy_count = stage_begin(g, t, copies, staged);
        full = 0;
        const int64_t whole = t.extent[2] / lanes;
        tails = t.extent[2] % lanes ? t.extent[0] * t.extent[1] : 0;
        for (int64_t o = 0; o < t.extent[0]; ++o)
          for (int64_t p = 0; p < t.extent[1]; ++p)
            for (int64_t v = 0; v < whole; ++v) col[full++] = stage_row(g, o, p, v * lanes);
        int64_t i = full;
        if (tails)
          for (int64_t o = 0; o < t.extent[0]; ++o)
            for (int64_t p = 0; p < t.extent[1]; ++p) col[i++] = stage_row(g, o, p, whole * lanes);
      }
      const int64_t vectors = full + tails;
      const int64_t live = t.extent[2] % lanes, whole = t.extent[2] - live;
      stage<T>(g, copies, copy_count, x_at<T>(g, n, group * g.Ci + ci0), ci, staged);
      // Whole vectors that already lie one after the other are read where they are.
      const bool adjacent = same_type && tails == 0 && step == 1 && g.axis[2].tiles == 1 &&
                            t.extent[0] == 1 &&
                            (t.extent[1] == 1 || g.out.stride[3] == t.extent[2]);
      const A* dy_from = dy;
      int64_t dy_channel = vectors * lanes;
      if (adjacent) {
        dy_from =
            reinterpret_cast<const A*>(dy_at<T>(g, n, group * g.Ko) + out_offset(g, t, 0, 0, 0));
        dy_channel = g.out.stride[1];
      }
      for (int64_t k = 0; k < g.Ko && !adjacent; ++k) {
        A* to = dy + k * vectors * lanes;
        A* tail = to + full * lanes;
        const T* from = dy_at<T>(g, n, group * g.Ko + k);
        for (int64_t o = 0; o < t.extent[0]; ++o)
          for (int64_t p = 0; p < t.extent[1]; ++p) {
            const T* src = from + out_offset(g, t, o, p, 0);
            load_run(src, step, to, whole);
            to += whole;
            if (!live) continue;
            load_run(src + whole * step, step, tail, live);
            fill_zero(tail + live, lanes - live);
            tail += lanes;
          }
      }
      for (int64_t ko0 = 0; ko0 < g.Ko; ko0 += g.panel) {
        const int64_t nb = g.panel < g.Ko - ko0 ? g.panel : g.Ko - ko0;
        VectorArgs<A> m{};
        m.a = staged;
        m.b_j = lanes;
        m.b_n = dy_channel;
        m.c = acc + ko0 * rows * lanes;
        m.c_n = rows * lanes;
        m.live = static_cast<int>(live);
        balanced(rows, vector_rows(nb), [&](int64_t first, int64_t count) {
          m.row = g.col + first;
          m.c_row = acc_at + first;
          m.init = unit > units.begin ? Init::kAccumulate : Init::kZero;
          if (full) {
            m.depth = full;
            m.col = col;
            m.b = dy_from + ko0 * m.b_n;
            vector_fn<A, Operand::kVector>(count, nb)(m);
            m.init = Init::kAccumulate;
          }
          if (tails) {
            m.depth = tails;
            m.col = col + full;
            m.b = dy_from + ko0 * m.b_n + full * lanes;
            vector_fn<A, Operand::kMasked>(count, nb)(m);
          }
        });
      }
    }
    A* out = static_cast<A*>(g.partial) + (chunk * g.groups + group) * g.Ko * g.Ci * g.taps;
    for (int64_t k = 0; k < g.Ko; ++k)
      sum_lanes(acc + k * rows * lanes, rows, out + (k * g.Ci + ci0) * g.taps);
  }
}

// partial: [chunk][tap][C padded]
template <class T>
void run_lanes(const DirectPlan& g, int64_t begin, int64_t end, void* slot) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  A* staged = slot_at<A>(slot, 0);
  A* dy = slot_at<A>(slot, g.slot_dy);
  int32_t* col = slot_at<int32_t>(slot, g.slot_row);
  int64_t* acc_at = slot_at<int64_t>(slot, g.slot_out);
  const int64_t tiles = tile_count(g), pitch = g.lane_block * g.lane_blocks;
  StageCopy* copies = slot_at<StageCopy>(slot, g.slot_copy);
  int64_t last_tile = -1, positions = 0, copy_count = 0;
  Tile t{};
  for (int64_t i = 0; i < g.taps; ++i) acc_at[i] = i * pitch;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task % g.lane_blocks * g.lane_block, chunk = task / g.lane_blocks;
    const int64_t channels = g.lane_block < g.groups - c0 ? g.lane_block : g.groups - c0;
    const Units units = units_of(g, chunk);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / tiles;
      if (unit % tiles != last_tile) {
        last_tile = unit % tiles;
        t = tile_at(g, last_tile);
        copy_count = stage_begin(g, t, copies, staged);
        positions = 0;
        for (int64_t o = 0; o < t.extent[0]; ++o)
          for (int64_t p = 0; p < t.extent[1]; ++p)
            for (int64_t q = 0; q < t.extent[2]; ++q) col[positions++] = stage_row(g, o, p, q);
      }
      stage<T>(g, copies, copy_count, x_at<T>(g, n, c0), channels, staged);
      stage_dy_pixels<T>(g, t, dy_at<T>(g, n, c0), channels, g.lane_block, dy);
      VectorArgs<A> m{};
      m.depth = positions;
      m.col = col;
      m.b_j = g.lane_block;
      m.init = unit > units.begin ? Init::kAccumulate : Init::kZero;
      for (int64_t c = 0; c < channels; c += lanes) {
        m.a = staged + c;
        m.b = dy + c;
        m.c = static_cast<A*>(g.partial) + chunk * g.taps * pitch + c0 + c;
        balanced(g.taps, vector_rows(1), [&](int64_t first, int64_t count) {
          m.row = g.col + first;
          m.c_row = acc_at + first;
          vector_fn<A, Operand::kVector>(count, 1)(m);
        });
      }
    }
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

// One task per output channel: adds the chunks in order and stores in the caller's strides.
template <class T>
void finish_typed(const DirectPlan& g, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int NR = kPanelVectors * Simd<A>::lanes;
  const A* partial = static_cast<const A*>(g.partial);
  const int64_t rows = g.Ci * g.taps, pitch = g.lane_block * g.lane_blocks;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t group = k / g.Ko, ko = k % g.Ko;
    const A* from;
    int64_t step, chunk_step;
    if (g.kernel == DirectKernel::kPanel) {
      from = partial + (group * g.panels + ko / NR) * rows * NR + ko % NR;
      step = NR;
      chunk_step = g.groups * g.panels * rows * NR;
    } else if (g.kernel == DirectKernel::kRows) {
      from = partial + (group * g.Ko + ko) * rows;
      step = 1;
      chunk_step = g.groups * g.Ko * rows;
    } else {
      from = partial + k;
      step = pitch;
      chunk_step = g.taps * pitch;
    }
    T* to = static_cast<T*>(const_cast<void*>(g.w)) + group * g.w_group + ko * g.w_ko;
    for (int64_t c = 0; c < g.Ci; ++c)
      for (int64_t t = 0; t < g.axis[0].taps; ++t)
        for (int64_t r = 0; r < g.axis[1].taps; ++r)
          for (int64_t s = 0; s < g.axis[2].taps; ++s, from += step) {
            A sum = from[0];
            for (int64_t chunk = 1; chunk < g.chunks; ++chunk) sum += from[chunk * chunk_step];
            from_acc(sum, to + c * g.w_ci + t * g.w_tap[0] + r * g.w_tap[1] + s * g.w_tap[2]);
          }
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

void finish(const DirectPlan& g, int64_t begin, int64_t end) {
  switch (g.dtype) {
    case DType::kFloat32: return finish_typed<float>(g, begin, end);
#if FC_VEC_BYTES < 64
    case DType::kFloat64: return finish_typed<double>(g, begin, end);
#else
    case DType::kFloat64: return;  // see isa.h
#endif
    case DType::kBFloat16: return finish_typed<bf16>(g, begin, end);
    case DType::kFloat16: return finish_typed<f16>(g, begin, end);
  }
}

}  // namespace

extern const DirectWgradTable direct_wgrad;
const DirectWgradTable direct_wgrad{run, finish};
}  // namespace fastconv::cpu::FC_ISA
