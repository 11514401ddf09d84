#include "conv_direct_plan.h"

#include <algorithm>

namespace fastconv::cpu {
namespace {

// L1 32 KiB, L2 512 KiB (measured on Zen 3; smaller caches than these are rare).
constexpr int64_t kPanelDepth = 288;       // kPanel: (ci, tap) per block; 18 KiB of weights
constexpr int64_t kPanelStage = 96 << 10;  // bytes
constexpr int64_t kPanelAcc = 160 << 10;
constexpr int64_t kRowsStage = 24 << 10;    // one channel, read once per tap from L1
constexpr int64_t kLanesStage = 128 << 10;  // read one vector of channels at a time
constexpr int64_t kMaxPositions = 1024;
constexpr int64_t kMinTasks = 16;            // wgrad: chunks are made until there are so many
constexpr int64_t kPartialBytes = 16 << 20;  // what those chunks may add

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

// Residues of the input coordinate modulo the stride that some tap reaches. Those of successive
// taps differ by the dilation, and repeat after stride / gcd taps.
int64_t reached_residues(const ConvProblem& p, int axis) {
  const int64_t stride = p.stride[axis];
  return std::min(p.filter[axis], stride / common_divisor(stride, p.dilation[axis]));
}

struct Residue {
  int64_t at[3];
};
Residue residue_of(const ConvProblem& p, Direction direction, int64_t klass) {
  Residue r{};
  if (direction != Direction::kDgrad) return r;
  for (int i = 2; i >= 0; --i) {
    const int64_t tap = klass % reached_residues(p, i);
    klass /= reached_residues(p, i);
    const int64_t from = (tap * p.dilation[i] - p.padding[i]) % p.stride[i];
    r.at[i] = from < 0 ? from + p.stride[i] : from;
  }
  return r;
}

// Calls fn(filter index, input offset) for the taps that reach the class.
template <class F>
void each_tap(const ConvProblem& p, Direction direction, int axis, int64_t residue, const F& fn) {
  for (int64_t t = 0; t < p.filter[axis]; ++t) {
    const int64_t reach = t * p.dilation[axis];
    if (direction != Direction::kDgrad) {
      fn(t, reach - p.padding[axis]);
      continue;
    }
    const int64_t from = residue + p.padding[axis] - reach;  // = output coordinate * stride
    if (from % p.stride[axis] == 0) fn(t, from / p.stride[axis]);
  }
}

struct Span {
  int64_t taps, low, high;
};
Span span_of(const ConvProblem& p, Direction direction, int axis, int64_t residue) {
  Span s{0, 0, 0};
  each_tap(p, direction, axis, residue, [&](int64_t, int64_t offset) {
    s.low = s.taps ? std::min(s.low, offset) : offset;
    s.high = s.taps ? std::max(s.high, offset) : offset;
    ++s.taps;
  });
  return s;
}

// Runs and slots of a tile of `tile` outputs. A single output needs its taps and nothing between.
void set_slots(DirectAxis* a, const Span& s, int64_t dilation, int64_t tile) {
  a->tile = tile;
  a->tiles = ceil_div(a->out, tile);
  if (tile == 1) {
    a->runs = a->taps;
    a->run = 1;
    return;
  }
  // Offsets of successive taps differ by the dilation: phases repeat after step / gcd taps.
  a->runs = std::min(a->taps, a->step / common_divisor(a->step, dilation));
  a->run = tile + (s.high - s.low) / a->step;
}

int64_t slots(const DirectAxis& a) { return a.runs * a.run; }

// Largest tile whose staged slots and positions fit, then evened out.
struct Tiler {
  DirectPlan* g;
  const Span* span;
  const int64_t* gap;  // input distance of successive taps
  int64_t bytes_per_slot, stage_bytes, positions;

  bool fits() const {
    const DirectAxis* a = g->axis;
    return a[0].tile * a[1].tile * a[2].tile <= positions &&
           slots(a[0]) * slots(a[1]) * slots(a[2]) * bytes_per_slot <= stage_bytes;
  }
  void set(int i, int64_t tile) { set_slots(&g->axis[i], span[i], gap[i], tile); }
  void grow(int i) {
    DirectAxis& a = g->axis[i];
    int64_t low = 1, high = a.out;  // invariant: low fits or is 1
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      set(i, middle);
      if (fits())
        low = middle;
      else
        high = middle - 1;
    }
    set(i, ceil_div(a.out, ceil_div(a.out, low)));
  }
  // Cuts rows so that the staged halo is small for the outputs it serves; a row's last vector
  // may be partly wasted.
  void shape(int64_t lanes) {
    DirectAxis* a = g->axis;
    double best = 0;
    int64_t chosen = 1;
    for (int64_t pieces = 1; pieces <= 16 && pieces <= a[2].out; ++pieces) {
      set(0, 1);
      set(1, 1);
      set(2, ceil_div(a[2].out, pieces));
      if (!fits()) continue;
      grow(1);
      const double outputs = double(a[2].tile * a[1].tile);
      const double halo = double(slots(a[2]) * slots(a[1])) / outputs;
      const double waste = double(ceil_div(a[2].tile, lanes) * lanes) / double(a[2].tile);
      const double worth = 1 / (halo + 2 * waste);
      if (worth > best * 1.02) {
        best = worth;
        chosen = a[2].tile;
      }
    }
    set(0, 1);
    set(1, 1);
    set(2, chosen);
    if (best == 0) grow(2);
    grow(1);
    grow(0);
  }
};

}  // namespace

int64_t direct_classes(const ConvProblem& p, Direction direction) {
  if (direction != Direction::kDgrad) return 1;
  return reached_residues(p, 0) * reached_residues(p, 1) * reached_residues(p, 2);
}

bool direct_leaves_zeros(const ConvProblem& p, Direction direction) {
  if (direction != Direction::kDgrad) return false;
  for (int i = 0; i < 3; ++i)
    if (reached_residues(p, i) < p.stride[i]) return true;
  return false;
}

bool plan_direct(const ConvProblem& p, DType dtype, Direction direction, int64_t klass,
                 DirectLayout layout, int threads, int vec_bytes, DirectPlan* g) {
  *g = DirectPlan{};
  const bool dgrad = direction == Direction::kDgrad, wgrad = direction == Direction::kWgrad;
  const int64_t acc = dtype == DType::kFloat64 ? 8 : 4, lanes = vec_bytes / acc;
  g->direction = direction;
  g->dtype = dtype;
  g->N = p.N;
  g->groups = p.groups;
  g->Ci = dgrad ? p.filters_per_group() : p.channels_per_group();
  g->Ko = dgrad ? p.channels_per_group() : p.filters_per_group();

  const Residue residue = residue_of(p, direction, klass);
  Span span[3];
  int64_t gap[3];
  g->taps = 1;
  g->filter_taps = p.filter_size();
  for (int i = 0; i < 3; ++i) {
    DirectAxis& a = g->axis[i];
    a.out_begin = residue.at[i];
    a.out_step = dgrad ? p.stride[i] : 1;
    a.out = dgrad ? ceil_div(p.in[i] - residue.at[i], p.stride[i]) : p.out[i];
    a.in = dgrad ? p.out[i] : p.in[i];
    a.step = dgrad ? 1 : p.stride[i];
    if (a.out <= 0) return false;
    span[i] = span_of(p, direction, i, residue.at[i]);
    a.taps = span[i].taps;
    gap[i] = p.dilation[i];
    g->taps *= a.taps;
    set_slots(&a, span[i], gap[i], 1);
  }
  const int64_t taps = std::max<int64_t>(g->taps, 1);

  // Kernel. Vectors along a row pay when a panel of channels would be mostly empty.
  const bool depthwise = g->Ci == 1 && g->Ko == 1;
  const int64_t row = g->axis[2].out;
  if (depthwise && layout.in_pixel && layout.out_pixel && p.groups >= lanes) {
    g->kernel = DirectKernel::kLanes;
  } else if ((g->Ko < lanes || (g->Ko == lanes && !layout.in_pixel)) &&
             (g->Ko <= 2 || row * 2 >= lanes)) {
    g->kernel = DirectKernel::kRows;
  } else {
    g->kernel = DirectKernel::kPanel;
  }
  g->pixel_stage =
      g->kernel == DirectKernel::kLanes || (g->kernel == DirectKernel::kPanel && layout.in_pixel);

  // Channels.
  int64_t stage_bytes = kRowsStage, positions = kMaxPositions;
  if (g->kernel == DirectKernel::kLanes) {
    const int64_t most = 16 * lanes;
    stage_bytes = kLanesStage;
    g->lane_blocks = ceil_div(p.groups, most);
    g->lane_block = ceil_div(ceil_div(p.groups, g->lane_blocks), lanes) * lanes;
    g->lane_blocks = ceil_div(p.groups, g->lane_block);
    g->ci_block = g->panel = g->panels = g->ci_blocks = 1;
  } else {
    const int64_t depth = std::max<int64_t>(kPanelDepth / taps, 1);
    g->ci_blocks = ceil_div(g->Ci, depth);
    g->ci_block = ceil_div(g->Ci, g->ci_blocks);
    g->ci_blocks = ceil_div(g->Ci, g->ci_block);
    if (g->kernel == DirectKernel::kPanel) {
      g->panel = kPanelVectors * lanes;
      stage_bytes = kPanelStage;
      positions = 256;
    } else {
      const int64_t most = wgrad ? 4 : kMaxRowOutputs;
      g->panel = ceil_div(g->Ko, ceil_div(g->Ko, most));
      if (g->Ci > 1) stage_bytes = kPanelStage;
    }
    g->panels = ceil_div(g->Ko, g->panel);
  }
  g->panels_per_task = g->panels;
  if (g->kernel == DirectKernel::kPanel) {
    // wgrad: dw of one task, fprop and dgrad: the tile's accumulators, stay in L2.
    const int64_t panel_bytes = g->panel * acc;
    if (wgrad)
      g->panels_per_task = std::min<int64_t>(g->panels, 4);
    else
      positions = std::min(positions, std::max<int64_t>(48, kPanelAcc / (panel_bytes * g->panels)));
  }

  // Tiles: a row first, then rows, then planes.
  const int64_t staged_channels = g->kernel == DirectKernel::kLanes ? g->lane_block : g->ci_block;
  Tiler tiler{g, span, gap, staged_channels * acc, stage_bytes, positions};
  tiler.shape(g->kernel == DirectKernel::kRows ? lanes : 1);
  DirectAxis* a = g->axis;
  g->tile_positions = a[0].tile * a[1].tile * a[2].tile;
  const int64_t tiles = a[0].tiles * a[1].tiles * a[2].tiles;

  int64_t step = 1;
  if (g->pixel_stage) {
    g->stage_c = 1;
    step = staged_channels;
  }
  for (int i = 2; i >= 0; --i) {
    g->stage_axis[i] = step;
    step *= slots(a[i]);
  }
  if (!g->pixel_stage) {
    g->stage_c = step;
    step *= staged_channels;
  }
  g->stage_elements = step + lanes;  // a vector at a row's end may read past it

  // Tasks.
  const bool lane_kernel = g->kernel == DirectKernel::kLanes;
  if (wgrad) {
    g->units = p.N * tiles;
    g->panel_splits = ceil_div(g->panels, g->panels_per_task);
    const int64_t independent =
        lane_kernel
            ? g->lane_blocks
            : p.groups * g->ci_blocks * (g->kernel == DirectKernel::kPanel ? g->panel_splits : 1);
    const int64_t dw = lane_kernel ? g->lane_block * g->lane_blocks * taps
                                   : p.groups * g->panels * g->panel * g->Ci * taps;
    g->chunks = std::min(g->units, ceil_div(kMinTasks, independent));
    g->chunks = std::max<int64_t>(1, std::min(g->chunks, kPartialBytes / (dw * acc)));
    g->tasks = g->chunks * independent;
    g->finish_tasks = p.K;
    g->partial_bytes = align64(g->chunks * dw * acc);
  } else {
    const int64_t independent = p.N * tiles * (lane_kernel ? g->lane_blocks : p.groups);
    g->panel_splits = 1;
    if (g->kernel == DirectKernel::kPanel && independent < 2 * threads) {
      // Which thread computes a channel changes no bit of it.
      const int64_t wanted = std::min(g->panels, ceil_div(2 * threads, independent));
      g->panels_per_task = ceil_div(g->panels, wanted);
      g->panel_splits = ceil_div(g->panels, g->panels_per_task);
    }
    g->tasks = independent * g->panel_splits;
    g->pack_tasks = lane_kernel ? g->lane_block * g->lane_blocks : p.groups * g->panels;
    g->weights_bytes =
        align64(acc * g->taps * (lane_kernel ? g->pack_tasks : g->pack_tasks * g->panel * g->Ci));
  }

  // Memory.
  int64_t entries = 0;
  for (int i = 0; i < 3; ++i) entries += 3 * a[i].taps + a[i].runs;
  g->tables_bytes = align64(8 * entries + 4 * g->ci_block * g->taps);
  int64_t at = align64(g->stage_elements * acc);
  const auto place = [&](int64_t bytes) {
    const int64_t here = at;
    at += align64(bytes);
    return here;
  };
  // Vectors of a tile, counting a row's partial one.
  const int64_t vectors = a[0].tile * a[1].tile * ceil_div(a[2].tile, lanes);
  switch (g->kernel) {
    case DirectKernel::kPanel:
      if (wgrad)
        g->slot_dy = place(g->tile_positions * g->panel * acc);
      else
        g->slot_acc = place(g->tile_positions * g->panels_per_task * g->panel * acc);
      break;
    case DirectKernel::kRows:
      g->slot_acc = place((wgrad ? g->Ko * g->ci_block * g->taps : g->Ko * vectors) * lanes * acc);
      if (wgrad) g->slot_dy = place(g->Ko * vectors * lanes * acc);
      break;
    case DirectKernel::kLanes:
      if (wgrad)
        g->slot_dy = place(g->tile_positions * g->lane_block * acc);
      else
        g->slot_acc = place(g->tile_positions * lanes * acc);
      break;
  }
  g->slot_row = place(4 * g->tile_positions);
  g->slot_out = place(8 * std::max(2 * g->tile_positions, g->ci_block * g->taps));
  g->slot_copy = place(16 * slots(a[0]) * slots(a[1]) * a[2].runs);
  g->slot_bytes = at;
  return true;
}

int64_t direct_workspace(const DirectPlan& g, int threads) {
  return g.tables_bytes + g.weights_bytes + g.partial_bytes + g.slot_bytes * threads;
}

void bind_direct(const ConvProblem& p, int64_t klass, void* workspace, DirectPlan* g) {
  int64_t* table = static_cast<int64_t*>(workspace);
  const Residue residue = residue_of(p, g->direction, klass);
  for (int i = 0; i < 3; ++i) {
    DirectAxis& a = g->axis[i];
    a.tap_filter = table;
    a.tap_offset = a.tap_filter + a.taps;
    a.tap_slot = a.tap_offset + a.taps;
    a.run_offset = a.tap_slot + a.taps;
    table = a.run_offset + a.runs;
    int64_t n = 0, low = 0;
    each_tap(p, g->direction, i, residue.at[i], [&](int64_t filter, int64_t offset) {
      a.tap_filter[n] = filter;
      a.tap_offset[n] = offset;
      low = n ? std::min(low, offset) : offset;
      ++n;
    });
    if (a.tile == 1) {
      for (int64_t t = 0; t < n; ++t) {
        a.tap_slot[t] = t;
        a.run_offset[t] = a.tap_offset[t];
      }
      continue;
    }
    int64_t runs = 0;
    for (int64_t t = 0; t < n; ++t) {
      const int64_t relative = a.tap_offset[t] - low;
      const int64_t phase = low + relative % a.step;
      int64_t u = 0;
      while (u < runs && a.run_offset[u] != phase) ++u;
      if (u == runs) a.run_offset[runs++] = phase;
      a.tap_slot[t] = u * a.run + relative / a.step;
    }
  }
  g->col = reinterpret_cast<int32_t*>(table);  // offsets within a stage: small
  int32_t* col = g->col;
  for (int64_t c = 0; c < g->ci_block; ++c)
    for (int64_t t = 0; t < g->axis[0].taps; ++t)
      for (int64_t r = 0; r < g->axis[1].taps; ++r)
        for (int64_t s = 0; s < g->axis[2].taps; ++s)
          *col++ = static_cast<int32_t>(c * g->stage_c + g->axis[0].tap_slot[t] * g->stage_axis[0] +
                                        g->axis[1].tap_slot[r] * g->stage_axis[1] +
                                        g->axis[2].tap_slot[s] * g->stage_axis[2]);
  char* base = static_cast<char*>(workspace) + g->tables_bytes;
  g->weights = base;
  g->partial = base + g->weights_bytes;
}

}  // namespace fastconv::cpu
