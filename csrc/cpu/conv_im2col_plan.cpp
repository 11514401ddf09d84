#include "conv_im2col_plan.h"

#include <algorithm>
#include <numeric>

namespace fastconv::cpu {
namespace {

// Chosen for 32 KiB L1 and 512 KiB L2 with fp32; fp64 halves the depth.
constexpr int64_t kDepthBytes = 1024;  // a panel of 16 columns is 16 KiB
constexpr int64_t kPixelRows = 216;    // kDown: pixels per chunk
constexpr int64_t kFilterVecs = 256;   // kDown: filters per chunk
constexpr int64_t kPixelVecs = 96;     // kAcross: pixels per chunk
constexpr int64_t kFilterRows = 512;   // kAcross: filters per chunk
constexpr int64_t kPatchRows = 192;    // kWgrad: filters per chunk
constexpr int64_t kPatchVecs = 256;    // kWgrad: (channel, tap) per chunk
constexpr int64_t kRowGroup = 192;     // rows x depth: 192 KiB of L2
constexpr int64_t kSharedPixels =
    384;  // kDown: from here on weights are packed once for all chunks
constexpr int64_t kDirectChannels = 12;  // shorter runs than this are packed

int64_t acc_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }
int64_t storage_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
bool accumulates_in_place(DType dtype) { return acc_bytes(dtype) == storage_bytes(dtype); }

int64_t depth_cap(DType dtype) { return kDepthBytes / acc_bytes(dtype); }

Im2colAxis forward_axis(const ConvProblem& p, int axis) {
  return {p.out[axis],
          p.filter[axis],
          p.in[axis],
          p.stride[axis],
          -p.padding[axis],
          p.dilation[axis],
          0,
          1,
          0,
          1};
}

// The taps that reach input coordinates congruent to `residue` modulo the stride.
Im2colAxis backward_axis(const ConvProblem& p, int axis, int64_t residue) {
  const int64_t stride = p.stride[axis], dilation = p.dilation[axis];
  const int64_t period = stride / std::gcd(stride, dilation);
  Im2colAxis a{};
  a.grid = p.in[axis] > residue ? im2col_ceil(p.in[axis] - residue, stride) : 0;
  a.source = p.out[axis];
  a.step = 1;
  a.origin = residue;
  a.spread = stride;
  a.tap_step = period;
  a.offset_step = -(dilation * period / stride);
  const int64_t at = residue + p.padding[axis];
  for (int64_t t = 0; t < std::min(period, p.filter[axis]); ++t) {
    const int64_t hit = at - t * dilation;
    if (hit % stride != 0) continue;
    a.tap = t;
    a.taps = im2col_ceil(p.filter[axis] - t, period);
    a.offset = hit / stride;
    break;
  }
  return a;
}

Im2colTensor tensor(const TensorRef& t) {
  return {static_cast<char*>(t.data),
          t.stride[0],
          t.stride[1],
          {t.stride[2], t.stride[3], t.stride[4]},
          0};
}

bool steps_like(int64_t extent, int64_t stride, int64_t wanted) {
  return extent == 1 || stride == wanted;
}

// Spatial axes of the two tensors that pixels walk together become one axis where the filter
// touches a single point and both memories are dense: rows of 7 pixels become one of 49.
void merge_axes(Im2colGemm& g, Im2colTensor& pixels, int64_t* batch) {
  for (const Im2colAxis& a : g.axis)
    if (a.taps != 1 || a.offset != 0 || a.step != 1 || a.origin != 0 || a.spread != 1 ||
        a.grid != a.source)
      return;
  int64_t extent = g.axis[2].grid;
  const auto dense = [&](int64_t e, int64_t gs, int64_t ps) {
    return steps_like(e, gs, extent * g.gather.s[2]) && steps_like(e, ps, extent * pixels.s[2]);
  };
  // A last axis of extent 1 may have any stride; leave that case alone.
  if (extent == 1) return;
  for (int axis = 1; axis >= 0; --axis) {
    if (!dense(g.axis[axis].grid, g.gather.s[axis], pixels.s[axis])) return;
    extent *= g.axis[axis].grid;
    g.axis[2].grid = g.axis[2].source = extent;
    g.axis[axis].grid = g.axis[axis].source = 1;
  }
  if (dense(*batch, g.gather.n, pixels.n)) {
    extent *= *batch;
    g.axis[2].grid = g.axis[2].source = extent;
    *batch = 1;
  }
}

// Whether (channel, tap) of the weights is one run of memory, taps fastest or channels fastest.
bool taps_are_inner(const Im2colGemm& g, const Im2colTensor& w) {
  int64_t step = 1;
  for (int axis = 2; axis >= 0; --axis) {
    if (g.axis[axis].tap_step != 1 || !steps_like(g.axis[axis].taps, w.s[axis], step)) return false;
    step *= g.axis[axis].taps;
  }
  return steps_like(g.channels, w.c, step);
}

bool channels_are_inner(const Im2colGemm& g, const Im2colTensor& w) {
  if (!steps_like(g.channels, w.c, 1)) return false;
  int64_t step = g.channels;
  for (int axis = 2; axis >= 0; --axis) {
    if (g.axis[axis].tap_step != 1 || !steps_like(g.axis[axis].taps, w.s[axis], step)) return false;
    step *= g.axis[axis].taps;
  }
  return true;
}

// Chunk of `extent` in `count` nearly equal parts, a multiple of `granule`.
int64_t chunk_of(int64_t extent, int64_t count, int64_t granule) {
  return im2col_ceil(im2col_ceil(extent, count), granule) * granule;
}

struct Caps {
  int64_t rows, vecs;
};

Caps chunk_caps(Im2colKind kind) {
  switch (kind) {
    case Im2colKind::kAcross: return {kFilterRows, kPixelVecs};
    case Im2colKind::kDown: return {kPixelRows, kFilterVecs};
    default: return {kPatchRows, kPatchVecs};
  }
}

// Cycles per unit of depth until the last thread is done, when tasks are dealt out in order.
double makespan(const Im2colGemm& g, int64_t row_chunk, int64_t vec_chunk, int lanes, int threads) {
  constexpr int kMost = 64;
  double busy[kMost] = {};
  const int workers = std::min(threads, kMost);
  const int64_t row_chunks = im2col_ceil(g.rows, row_chunk);
  const int64_t vec_chunks = im2col_ceil(g.vecs, vec_chunk);
  for (int64_t repeat = 0; repeat < std::min<int64_t>(g.groups * g.slices, 4 * threads); ++repeat) {
    for (int64_t r = 0; r < row_chunks; ++r) {
      for (int64_t v = 0; v < vec_chunks; ++v) {
        const double rows = double(std::min(row_chunk, g.rows - r * row_chunk));
        const double vecs =
            double(im2col_ceil(std::min(vec_chunk, g.vecs - v * vec_chunk), lanes) * lanes);
        // Register tiles at full rate, packing of panels, reading of rows.
        *std::min_element(busy, busy + workers) +=
            rows * vecs / (2 * lanes) + 0.5 * vecs + 0.5 * rows + 50;
      }
    }
  }
  return *std::max_element(busy, busy + workers);
}

void choose_chunks(Im2colGemm& g, const Im2colKernels& k, int lanes, int threads) {
  // Moments come from chunks of pixels, which no number of threads may change.
  const bool free_rows = g.moments.K == 0 || g.kind != Im2colKind::kDown;
  const Caps caps = chunk_caps(g.kind);
  const int64_t NR = lanes * k.tile_vectors;
  const int64_t vec_cap = std::max(caps.vecs / NR, int64_t{1}) * NR;
  const int64_t min_rows = im2col_ceil(g.rows, caps.rows);
  const int64_t min_vecs = im2col_ceil(g.vecs, vec_cap);
  int64_t best_rows = min_rows, best_vecs = min_vecs;
  if (threads > 1 && g.groups * g.slices * min_rows * min_vecs < 4 * threads) {
    double best = 1e300;
    const int more = std::min(threads, 8);
    for (int64_t a = min_rows; a <= min_rows + (free_rows ? more : 0); ++a) {
      for (int64_t b = min_vecs; b <= min_vecs + more; ++b) {
        const double time =
            makespan(g, chunk_of(g.rows, a, 1), chunk_of(g.vecs, b, NR), lanes, threads);
        if (time < best * 0.99) best = time, best_rows = a, best_vecs = b;
      }
    }
  }
  g.row_chunk = chunk_of(g.rows, best_rows, 1);
  g.vec_chunk = chunk_of(g.vecs, best_vecs, NR);
  g.row_chunks = im2col_ceil(g.rows, g.row_chunk);
  g.vec_chunks = im2col_ceil(g.vecs, g.vec_chunk);
}

void choose_depth(Im2colGemm& g, DType dtype) {
  const int64_t cap = depth_cap(dtype);
  if (g.depth == 0) {
    g.depth_block = g.depth_blocks = 1;
  } else if (g.unit == 0) {
    g.depth_blocks = im2col_ceil(g.depth, cap);
    g.depth_block = im2col_ceil(g.depth, g.depth_blocks);
    g.depth_blocks = im2col_ceil(g.depth, g.depth_block);
  } else if (g.unit > cap) {
    g.depth_block = im2col_ceil(g.unit, im2col_ceil(g.unit, cap));
    g.depth_blocks = g.depth / g.unit * im2col_ceil(g.unit, g.depth_block);
  } else {
    const int64_t count = g.depth / g.unit, most = cap / g.unit;
    const int64_t units = im2col_ceil(count, im2col_ceil(count, most));
    g.depth_block = units * g.unit;
    g.depth_blocks = im2col_ceil(count, units);
  }
}

}  // namespace

Im2colScratch im2col_scratch(const ConvProblem& p, DType dtype, Direction direction,
                             const Im2colKernels& k) {
  const int lanes = k.lanes[dtype == DType::kFloat64];
  const int64_t NR = lanes * k.tile_vectors, size = acc_bytes(dtype), depth = depth_cap(dtype);
  Im2colScratch s{};
  const int64_t pixels = p.N * (direction == Direction::kDgrad ? p.in_size() : p.out_size());
  const int64_t filters =
      direction == Direction::kDgrad ? p.channels_per_group() : p.filters_per_group();
  int64_t panels = 0, rows = 0, acc = 0;
  const auto include = [&](Im2colKind kind, int64_t row_extent, int64_t vec_extent) {
    const Caps caps = chunk_caps(kind);
    const int64_t r = std::min(caps.rows, row_extent);
    const int64_t v = im2col_ceil(std::min(std::max(caps.vecs, NR), vec_extent), NR) * NR;
    panels = std::max(panels, v * depth);
    rows = std::max(rows, r * depth);
    acc = std::max(acc, r * v);
    s.rows_cap = std::max(s.rows_cap, r);
    s.vecs_cap = std::max(s.vecs_cap, v);
  };
  if (direction == Direction::kWgrad) {
    include(Im2colKind::kWgrad, filters, p.channels_per_group() * p.filter_size());
  } else {
    include(Im2colKind::kAcross, filters, pixels);
    include(Im2colKind::kDown, pixels, filters);
  }
  s.depth_cap = depth;
  const auto place = [&](int64_t bytes) {
    const int64_t at = s.bytes;
    s.bytes += im2col_ceil(bytes, 64) * 64;
    return at;
  };
  s.panels = place(panels * size);
  s.rows = place(rows * size);
  s.acc = place(acc * size);
  s.temp = place(direction == Direction::kWgrad ? NR * depth * size : 0);
  s.zeros = place(depth * size);
  s.bias = place((std::max(s.rows_cap, s.vecs_cap) + 64) * size);
  const int64_t segments =
      direction == Direction::kWgrad ? depth : im2col_ceil(depth, kDirectChannels);
  s.table = place(s.rows_cap * segments * int64_t{sizeof(void*)});
  s.row_offset = place(s.rows_cap * 8);
  s.vec_offset = place(s.vecs_cap * 8);
  s.depth_offset = place(depth * 8);
  return s;
}

int64_t im2col_classes(const ConvProblem& p, Direction direction) {
  if (direction != Direction::kDgrad) return 1;
  int64_t classes = 1;
  for (int axis = 0; axis < 3; ++axis) classes *= std::min(p.stride[axis], p.in[axis]);
  return classes;
}

int64_t im2col_packed_bytes(const Im2colGemm& g, DType dtype, const Im2colKernels& k) {
  const bool across = g.kind == Im2colKind::kAcross;
  if (g.kind == Im2colKind::kWgrad || (across && g.rows_direct) || g.tasks() == 0) return 0;
  if (g.pixels <= (across ? kPixelVecs : kSharedPixels)) return 0;
  const int64_t columns = across ? g.rows : g.packed_columns(k.lanes[dtype == DType::kFloat64]);
  return g.groups * g.depth * columns * acc_bytes(dtype);
}

int64_t im2col_packed_bytes(const ConvProblem& p, DType dtype, Direction direction,
                            const Im2colKernels& k) {
  if (direction == Direction::kWgrad) return 0;
  const bool backward = direction == Direction::kDgrad;
  const int64_t pixels = p.N * (backward ? p.in_size() : p.out_size());
  if (pixels <= std::min(kPixelVecs, kSharedPixels)) return 0;
  const int64_t filters = backward ? p.channels_per_group() : p.filters_per_group();
  const int64_t channels = backward ? p.filters_per_group() : p.channels_per_group();
  const int64_t lanes = k.lanes[dtype == DType::kFloat64];
  return p.groups * channels * p.filter_size() * im2col_ceil(filters, lanes) * lanes *
         acc_bytes(dtype);
}

int64_t im2col_slices(const ConvProblem& p, DType dtype, Direction direction) {
  if (direction != Direction::kWgrad) return 1;
  const int64_t tiles = p.groups * im2col_ceil(p.filters_per_group(), kPatchRows) *
                        im2col_ceil(p.channels_per_group() * p.filter_size(), kPatchVecs);
  const int64_t depth = p.N * p.out_size();
  const int64_t wanted = std::min<int64_t>(32 / tiles, depth / (2 * depth_cap(dtype)));
  return wanted < 2 ? 1 : wanted / 2 * 2;
}

Im2colGemm im2col_plan(const ConvCall& call, int64_t index, const Im2colKernels& k, int threads) {
  const ConvProblem& p = call.problem;
  Im2colGemm g{};
  g.groups = p.groups;
  const int lanes = k.lanes[call.dtype == DType::kFloat64];
  for (int axis = 2; axis >= 0; --axis) {
    if (call.direction == Direction::kDgrad) {
      const int64_t classes = std::min(p.stride[axis], p.in[axis]);
      g.axis[axis] = backward_axis(p, axis, index % classes);
      index /= classes;
    } else {
      g.axis[axis] = forward_axis(p, axis);
    }
  }
  g.taps = g.axis[0].taps * g.axis[1].taps * g.axis[2].taps;
  const int64_t Cg = p.channels_per_group(), Kg = p.filters_per_group();
  int64_t batch = p.N;
  if (call.direction == Direction::kFprop) {
    g.gather = tensor(call.x), g.other = tensor(call.w), g.dest = tensor(call.y);
    g.gather.group = Cg * g.gather.c, g.dest.group = Kg * g.dest.c;
    g.bias = call.bias, g.epilogue = call.epilogue, g.moments = call.moments;
    g.channels = Cg, g.filters = Kg;
  } else if (call.direction == Direction::kDgrad) {
    g.gather = tensor(call.y), g.other = tensor(call.w), g.dest = tensor(call.x);
    std::swap(g.other.n, g.other.c);
    g.gather.group = Kg * g.gather.c, g.dest.group = Cg * g.dest.c;
    g.channels = Kg, g.filters = Cg;
  } else {
    g.gather = tensor(call.x), g.other = tensor(call.y), g.dest = tensor(call.w);
    g.gather.group = Cg * g.gather.c, g.dest.group = Kg * g.dest.n;
    g.channels = Cg, g.filters = Kg;
  }
  g.other.group = call.direction == Direction::kWgrad   ? Kg * g.other.c
                  : call.direction == Direction::kDgrad ? Kg * g.other.c
                                                        : Kg * g.other.n;
  const bool in_place = accumulates_in_place(call.dtype);
  g.slices = 1;
  if (call.direction == Direction::kWgrad) {
    g.kind = Im2colKind::kWgrad;
    merge_axes(g, g.other, &batch);
    g.pixels_per_image = g.axis[0].grid * g.axis[1].grid * g.axis[2].grid;
    g.pixels = batch * g.pixels_per_image;
    g.rows = g.filters, g.vecs = g.channels * g.taps, g.depth = g.pixels;
    g.tap_inner = g.gather.c != 1 && g.dest.c != 1;
    const Im2colAxis* a = g.axis;
    g.rows_direct = in_place && steps_like(a[2].grid, g.other.s[2], 1) &&
                    steps_like(a[1].grid, g.other.s[1], a[2].grid) &&
                    steps_like(a[0].grid, g.other.s[0], a[1].grid * a[2].grid);
    if (g.rows_direct) g.unit = g.pixels_per_image;
  } else {
    // Channels-last output: vectors run along its channels.
    const bool down = g.dest.c == 1 && g.filters > 1 && g.dest.s[2] != 1;
    g.kind = down ? Im2colKind::kDown : Im2colKind::kAcross;
    if (g.taps > 0) merge_axes(g, g.dest, &batch);
    g.pixels_per_image = g.axis[0].grid * g.axis[1].grid * g.axis[2].grid;
    g.pixels = batch * g.pixels_per_image;
    g.depth = g.channels * g.taps;
    if (down) {
      g.rows = g.pixels, g.vecs = g.filters;
      g.unit = g.channels;
      g.rows_direct = in_place && g.channels >= kDirectChannels && g.gather.c == 1;
    } else {
      g.rows = g.filters, g.vecs = g.pixels;
      g.tap_inner = !channels_are_inner(g, g.other);
      g.rows_direct = in_place && (!g.tap_inner || taps_are_inner(g, g.other));
    }
  }
  if (g.pixels == 0 && call.direction == Direction::kDgrad) {
    g.row_chunks = g.vec_chunks = 0;
    return g;
  }
  g.row_group = kRowGroup;
  choose_depth(g, call.dtype);
  if (call.direction == Direction::kWgrad)
    g.slices = std::min(im2col_slices(p, call.dtype, call.direction), g.depth_blocks);
  choose_chunks(g, k, lanes, threads);
  return g;
}

}  // namespace fastconv::cpu
