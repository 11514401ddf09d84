// Table of halo, and what the host computes for it: limits, the arrangement of tiles, arguments.
#include "conv_halo.h"

#include <algorithm>
#include <limits>

#include "cluster_room.h"
#include "conv_gather_halo.cuh"
#include "conv_im2col.h"
#include "conv_moments.h"
#include "conv_result.h"
#include "device_rates.h"
#include "tensor_map.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kChunk = 64, kStep = 16, kRowBytes = 128;
constexpr int64_t kLimit = int64_t{1} << 30;

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }
int64_t rounded(int64_t extent, int64_t block) { return tiles(extent, block) * block; }

// What does not depend on how a tile's units are arranged.
HaloPlan common_plan(const HaloShape& s, const ConvProblem& p) {
  HaloPlan g{};
  g.src_channels = s.dgrad() ? p.K : p.C;
  g.dst_channels = s.dgrad() ? p.C : p.K;
  for (int i = 0; i < 2; ++i) {
    g.src[i] = s.dgrad() ? p.out[i + 1] : p.in[i + 1];
    g.dst[i] = s.dgrad() ? p.in[i + 1] : p.out[i + 1];
    g.first[i] = s.dgrad() ? p.padding[i + 1] - (p.filter[i + 1] - 1) : -p.padding[i + 1];
  }
  g.chunks = tiles(g.src_channels, kChunk);
  g.steps = tiles(g.src_channels, kStep);
  g.parts = tiles(g.dst_channels, s.block_n);
  const int64_t taps = p.filter_size(), columns = p.filter[2];
  const int64_t last = g.src_channels - (g.chunks - 1) * kChunk;
  g.last_eighths = 2 * tiles(last, kStep);
  g.last_all = tiles(last, kStep) * columns;
  if (s.dgrad()) {
    // Rows of w are gemm_k, 64 of gemm_n to a row: as many as there are steps.
    g.tap_pitch = g.chunks > 1 ? g.chunks * kChunk : g.steps * kStep;
    g.w_taps = taps;
    g.w_chunks = g.chunks;
    g.w_chunk_bytes = g.tap_pitch / g.chunks * kRowBytes;
    g.w_bytes = s.block_n / kChunk * taps * g.tap_pitch * kRowBytes;
  } else {
    // Taps follow one another without a gap where that leaves each at the start of a step. Of few
    // channels those of a row do, and steps do not heed them; there a row starts a chunk.
    const bool packed = g.src_channels % kStep == 0, rows = !packed && g.chunks == 1;
    g.tap_pitch = packed || rows ? g.src_channels : g.chunks * kChunk;
    g.w_taps = packed ? 1 : rows ? p.filter[1] : taps;
    g.w_chunks = tiles(taps / g.w_taps * g.src_channels, kChunk);
    g.w_chunk_bytes = s.block_n * kRowBytes;
    g.w_bytes = g.w_taps * g.w_chunks * g.w_chunk_bytes;
    if (rows) {
      g.row_pitch = g.w_chunks * kChunk;
      g.last_eighths = g.src_channels / 8;
      g.last_all = tiles(columns * g.src_channels, kStep);
    }
  }
  if (g.row_pitch == 0) g.row_pitch = columns * g.tap_pitch;
  g.row_steps = (g.chunks - 1) * (kChunk / kStep) * columns + g.last_all;
  return g;
}

// Units along W and along H, as powers of two; the rest are images.
void arrange(const HaloShape& s, const ConvProblem& p, int w_log, int h_log, HaloPlan* g) {
  g->units_log[0] = h_log;
  g->units_log[1] = w_log;
  g->tile[0] = s.units >> (w_log + h_log);
  g->tile[1] = int64_t{s.unit_h} << h_log;
  g->tile[2] = int64_t{s.unit_w} << w_log;
  g->tiles[0] = tiles(p.N, g->tile[0]);
  for (int i = 0; i < 2; ++i) {
    g->tiles[i + 1] = tiles(g->dst[i], g->tile[i + 1]);
    g->box[i] = g->tile[i + 1] + p.filter[i + 1] - 1;
  }
  g->box_bytes = g->tile[0] * g->box[0] * g->box[1] * kRowBytes;
  g->stage_bytes = rounded(g->box_bytes, 1024);
  g->fits = g->w_bytes + g->stage_bytes + g->box_bytes <= s.data_bytes;
}

template <class Each>
void each_arrangement(const HaloShape& s, const ConvProblem& p, HaloPlan* g, const Each& each) {
  for (int h_log = 0; s.units >> h_log != 0; ++h_log)
    for (int w_log = 0; s.units >> (h_log + w_log) != 0; ++w_log) {
      arrange(s, p, w_log, h_log, g);
      each();
    }
}

// Sum over i < count of `first` + i * step, each cut off at 0 and at `extent`.
int64_t clamped_sum(int64_t count, int64_t first, int64_t step, int64_t extent) {
  const auto reaching = [&](int64_t bound) {  // the first i that is there or beyond
    return first >= bound ? 0 : std::min(count, tiles(bound - first, step));
  };
  const int64_t low = reaching(0), high = reaching(extent);
  return (high - low) * first + (high * (high - 1) - low * (low - 1)) / 2 * step +
         (count - high) * extent;
}

// Of one part of dst's channels: what all boxes have in common with src. The rest is zero, and not
// read.
double boxes_bytes(const HaloPlan& g, int64_t images) {
  double bytes = 2.0 * double(images) * double(g.src_channels);
  for (int i = 0; i < 2; ++i) {
    const int64_t count = g.tiles[i + 1], step = g.tile[i + 1];
    bytes *= double(clamped_sum(count, g.first[i] + g.box[i], step, g.src[i]) -
                    clamped_sum(count, g.first[i], step, g.src[i]));
  }
  return bytes;
}

constexpr double kSharedEfficiency = 0.95;
constexpr double kArriving = 64;  // bytes that an SM takes in a cycle
constexpr int kMostClusterLog = 2;

// Seconds, and what comes from L2, with so many blocks to a cluster.
void estimate(const HaloShape& s, const ConvProblem& p, const Device& device, int cluster_log,
              HaloPlan* g) {
  const DeviceRates rates = device_rates(device);
  const double cycle = warpgroup_cycle_s(rates, device);
  const double sm_rate = rates.l2_bytes_per_s / device.sm_count;
  const int cluster = 1 << cluster_log, room = cluster_room(device, cluster);
  const int64_t all = g->tiles[0] * g->tiles[1] * g->tiles[2];
  const int64_t clusters =
      std::max<int64_t>(1, std::min<int64_t>(tiles(all, cluster), room / g->parts));
  g->cluster_log = cluster_log;
  g->blocks = clusters * cluster;
  const double waves = double(tiles(clusters * g->parts, room));

  const double products = double(g->row_steps) * s.filter_h * s.products;
  const double tile_flops = products * 2 * 64 * s.block_n * kStep;
  const double tensor = tile_flops / kWarpgroupFlops / kWarpgroupShare;
  const double fragments = double(g->row_steps) * (s.filter_h + s.products - 1);
  const double shared = (products * s.block_n * kStep * 2 + fragments * 64 * kStep * 2 +
                         double(g->chunks * g->box_bytes)) /
                        128 / kSharedEfficiency;
  const double part_bytes = boxes_bytes(*g, p.N);
  // A box is replaced while the other consumer multiplies.
  const double load = double(g->chunks) * kFirstBytes_s + part_bytes / double(all) / sm_rate;
  const double multiply = std::max(tensor, shared) * cycle;
  const double tile = std::max(multiply, (multiply + load) / 2);
  const double epilogue = warpgroup_store_s(64.0 * s.products * s.block_n, rates, device);
  const double weights =
      std::max(double(g->w_bytes) / cluster / sm_rate, double(g->w_bytes) / kArriving * cycle);
  const double first = kFirstBytes_s + weights + (cluster > 1 ? kClusterSync_s : 0.0);
  const double sums = waves * (first + double(tiles(all, g->blocks)) * tile + epilogue);

  g->flops = double(all * g->parts) * tile_flops;
  g->pixel_bytes = double(g->parts) * part_bytes;
  const double w_bytes = 2.0 * double(p.K) * double(p.C) * double(p.filter_size());
  g->weight_bytes = double(clusters) * w_bytes;
  const double elements =
      double(p.N) * (double(p.C) * double(p.in_size()) + double(p.K) * double(p.out_size()));
  const double dram = (2 * elements + w_bytes) / rates.bytes_per_s;
  g->seconds = rates.launch_s + std::max(sums, dram);
}

}  // namespace

std::string halo_refusal(const HaloShape& s, const ConvProblem& p) {
  const auto text = [](int64_t v) { return std::to_string(v); };
  if (p.groups != 1) return "groups=" + text(p.groups) + ", it is for one group";
  if (p.in[0] != 1 || p.filter[0] != 1 || p.padding[0] != 0)
    return "D=" + text(p.in[0]) + ", T=" + text(p.filter[0]) + ", it is for planes";
  for (int axis = 1; axis < 3; ++axis) {
    if (p.stride[axis] != 1) return "stride " + text(p.stride[axis]) + ", it is for stride 1";
    // Of a single tap there is none.
    if (p.dilation[axis] != 1 && p.filter[axis] != 1)
      return "dilation " + text(p.dilation[axis]) + ", it is for dilation 1";
  }
  if (p.filter[1] != s.filter_h)
    return "the filter has " + text(p.filter[1]) + " rows, the kernel is for " + text(s.filter_h);
  if (p.filter[2] > 7) return "S=" + text(p.filter[2]) + ", the kernel's limit is 7";
  if (p.C % 8 != 0) return "C=" + text(p.C) + " is not a multiple of 8";
  if (s.dgrad() && p.K % 8 != 0) return "K=" + text(p.K) + " is not a multiple of 8";
  HaloPlan g = common_plan(s, p);
  const int64_t largest =
      std::max({p.N * p.in[1] * p.in[2], p.N * p.out[1] * p.out[2], p.padding[1] + p.padding[2],
                g.parts * p.N * tiles(g.dst[0], s.unit_h) * tiles(g.dst[1], s.unit_w)});
  if (largest >= kLimit)
    return "an extent is " + text(largest) + ", the kernel's limit is " + text(kLimit - 1);
  int64_t smallest = std::numeric_limits<int64_t>::max();
  bool fits = false;
  each_arrangement(s, p, &g, [&] {
    smallest = std::min(smallest, g.box_bytes);
    fits = fits || g.fits;
  });
  if (!fits)
    return text(g.w_bytes) + " bytes of weights and twice " + text(smallest) +
           " of pixels do not fit into the " + text(s.data_bytes) + " of shared memory";
  return {};
}

HaloPlan halo_plan(const HaloShape& s, const ConvProblem& p, const Device& device) {
  HaloPlan g = common_plan(s, p), best{};
  best.seconds = std::numeric_limits<double>::infinity();
  each_arrangement(s, p, &g, [&] {
    if (!g.fits) return;
    for (int cluster_log = 0; cluster_log <= kMostClusterLog; ++cluster_log) {
      if (1 << cluster_log > device.sm_count) break;
      estimate(s, p, device, cluster_log, &g);
      // Of equally fast ones that which reads less.
      const double more = g.pixel_bytes + g.weight_bytes - (best.pixel_bytes + best.weight_bytes);
      if (g.seconds < best.seconds || (g.seconds == best.seconds && more < 0)) best = g;
    }
  });
  return best;
}

namespace {

int halo_params(const HaloShape& s, const HaloPlan& g, const ConvCall& call,
                ConvHaloParams* params) {
  const ConvProblem& c = call.problem;
  ConvHaloParams& p = *params;
  p = ConvHaloParams{};
  const auto extent = [](int64_t v) { return static_cast<uint64_t>(v); };
  const auto box = [](int64_t v) { return static_cast<uint32_t>(v); };
  const auto number = [](int64_t v) { return static_cast<int>(v); };

  const uint64_t pixel = extent(2 * g.src_channels);
  const TensorAxes src{
      s.dgrad() ? call.y : call.x,
      s.dtype,
      4,
      {extent(g.src_channels), extent(g.src[1]), extent(g.src[0]), extent(c.N)},
      {2, pixel, pixel * extent(g.src[1]), pixel * extent(g.src[1]) * extent(g.src[0])}};
  const uint32_t pixels[4] = {box(kChunk), box(g.box[1]), box(g.box[0]), box(g.tile[0])};
  int error = encode_tile_map(&p.src, src, pixels);
  if (error != cudaSuccess) return error;
  const int64_t taps = c.filter_size(), row = s.dgrad() ? c.C : taps / g.w_taps * c.C;
  const TensorAxes w{call.w,
                     s.dtype,
                     3,
                     {extent(row), extent(g.w_taps), extent(c.K)},
                     {2, extent(2 * row), extent(2 * c.C * taps)}};
  const uint32_t weights[3] = {box(kChunk), 1,
                               s.dgrad() ? box(g.tap_pitch / g.chunks) : box(s.block_n)};
  error = encode_tile_map(&p.w, w, weights);
  if (error != cudaSuccess) return error;

  p.result = conv_result(call, s.direction, 2, c.N * g.dst[0] * g.dst[1]);
  p.images = number(c.N);
  p.rows = number(g.dst[0]);
  p.columns = number(g.dst[1]);
  p.first_h = number(g.first[0]);
  p.first_w = number(g.first[1]);
  p.units_h_log = g.units_log[0];
  p.units_w_log = g.units_log[1];
  p.tile_n = number(g.tile[0]);
  p.tile_h = number(g.tile[1]);
  p.tile_w = number(g.tile[2]);
  p.box_h = number(g.box[0]);
  p.box_w = number(g.box[1]);
  p.tiles_h = FastDivmod(box(g.tiles[1]));
  p.tiles_w = FastDivmod(box(g.tiles[2]));
  p.tiles = number(g.tiles[0] * g.tiles[1] * g.tiles[2]);
  p.parts = number(g.parts);
  p.cluster_log = g.cluster_log;
  p.stage_bytes = number(g.stage_bytes);
  p.box_bytes = number(g.box_bytes);
  p.filter_w = number(c.filter[2]);
  p.taps = number(taps);
  p.chunks = number(g.chunks);
  p.last_eighths = number(g.last_eighths);
  p.last_reciprocal = halo_reciprocal(p.last_eighths);
  p.last_all = number(g.last_all);
  p.tap_pitch = number(g.tap_pitch);
  p.row_pitch = number(g.row_pitch);
  p.w_taps = number(g.w_taps);
  p.w_chunks = number(g.w_chunks);
  p.w_chunk_bytes = number(g.w_chunk_bytes);
  p.w_bytes = number(g.w_bytes);
  return cudaSuccess;
}

// Fallback: the configuration of im2col that takes bases at any alignment.
template <Direction direction, DType dtype, class scalar_t, int FILTER_H, int BLOCK_N, int PRODUCTS>
struct HaloConfig {
  using Tile = HaloTile<scalar_t, FILTER_H, BLOCK_N, PRODUCTS>;
  using Fallback = Im2colNhwcVec<direction, Mma128<scalar_t>, Mma64<scalar_t>, 8>;
  static constexpr HaloShape shape{direction,    dtype,        FILTER_H,
                                   BLOCK_N,      PRODUCTS,     Tile::UNITS,
                                   Tile::UNIT_W, Tile::UNIT_H, Tile::DATA_BYTES};
};

template <class Config>
int launch(const ConvCall& call) {
  using Tile = typename Config::Tile;
  constexpr HaloShape shape = Config::shape;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  const void* src = shape.dgrad() ? call.y : call.x;
  if (reinterpret_cast<uintptr_t>(src) % 16 != 0 || reinterpret_cast<uintptr_t>(call.w) % 16 != 0)
    return launch_conv_im2col<typename Config::Fallback>(call);
  const HaloPlan plan = halo_plan(shape, call.problem, call.device);
  ConvHaloParams p;
  if (const int error = halo_params(shape, plan, call, &p)) return error;
  const int bytes = Tile::ALIGNMENT + p.w_bytes + p.stage_bytes + p.box_bytes + Tile::BARRIER_BYTES;
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks * plan.parts)),
                            dim3(Tile::NUM_THREADS), static_cast<size_t>(bytes), call.stream};
  const auto kernel = [] {
    if constexpr (Config::shape.direction == Direction::kFprop)
      return conv_fprop_halo_kernel<Tile>;
    else
      return conv_dgrad_halo_kernel<Tile>;
  }();
  return launch_with_moments(
      call, shape.direction, plan.tile_count(), [&](const MomentTiles<float>& moments) {
        p.moments = moments;
        return plan.cluster_log == 0 ? launch_kernel(kernel, config, p)
                                     : launch_clusters(kernel, config, 1u << plan.cluster_log, p);
      });
}

template <class Config>
std::string refusal(const ConvProblem& p) {
  std::string why = halo_refusal(Config::shape, p);
  return why.empty() ? im2col_refusal(Config::Fallback::shape, p) : why;
}
int64_t no_workspace(const ConvProblem&, const Device&) { return 0; }
// Also enough for the fallback's.
template <class Config>
int64_t stats_workspace(const ConvProblem& p, const Device& device) {
  const int64_t tiles = halo_plan(Config::shape, p, device).tile_count();
  return std::max(im2col_stats_workspace(p, device), moments_bytes(p.K, tiles));
}
template <class Config>
constexpr auto kStatsWorkspace = Config::shape.dgrad() ? nullptr : stats_workspace<Config>;
template <class Config>
double cost(const ConvProblem& p, const Device& device) {
  return halo_plan(Config::shape, p, device).seconds;
}

// X(name, direction, DType, scalar, rows of the filter, BLOCK_N, PRODUCTS). Names end in the
// filter's rows and a tile's pixels x channels.
#define FC_HALO_TILES(X, direction, dn, dtype, name, scalar_t)                      \
  X(dn "_" name "_nhwc_wgmma_rows3_256x64", direction, dtype, scalar_t, 3, 64, 4)   \
  X(dn "_" name "_nhwc_wgmma_rows3_128x128", direction, dtype, scalar_t, 3, 128, 2) \
  X(dn "_" name "_nhwc_wgmma_rows3_128x64", direction, dtype, scalar_t, 3, 64, 2)   \
  X(dn "_" name "_nhwc_wgmma_rows5_128x64", direction, dtype, scalar_t, 5, 64, 2)
#define FC_HALO_INSTANCES(X)                                                            \
  FC_HALO_TILES(X, Direction::kFprop, "fprop", DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_HALO_TILES(X, Direction::kFprop, "fprop", DType::kFloat16, "f16", __half)          \
  FC_HALO_TILES(X, Direction::kDgrad, "dgrad", DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_HALO_TILES(X, Direction::kDgrad, "dgrad", DType::kFloat16, "f16", __half)

#define FC_HALO_ROW(name, direction, dtype, ...)               \
  {name,                                                       \
   direction,                                                  \
   dtype,                                                      \
   Layout::kNHWC,                                              \
   Products::kIeee,                                            \
   refusal<HaloConfig<direction, dtype, __VA_ARGS__>>,         \
   no_workspace,                                               \
   cost<HaloConfig<direction, dtype, __VA_ARGS__>>,            \
   launch<HaloConfig<direction, dtype, __VA_ARGS__>>,          \
   kStatsWorkspace<HaloConfig<direction, dtype, __VA_ARGS__>>, \
   90},
const ConvInstance kInstances[] = {FC_HALO_INSTANCES(FC_HALO_ROW)};
constexpr int kCount = sizeof(kInstances) / sizeof(kInstances[0]);

#define FC_HALO_SHAPE(name, direction, dtype, ...) \
  &HaloConfig<direction, dtype, __VA_ARGS__>::shape,
const HaloShape* const kShapes[kCount] = {FC_HALO_INSTANCES(FC_HALO_SHAPE)};

}  // namespace

const HaloShape* find_halo_shape(const std::string& instance) {
  for (int i = 0; i < kCount; ++i)
    if (instance == kInstances[i].name) return kShapes[i];
  return nullptr;
}

extern const ConvAlgorithm conv_halo = {"halo", kInstances, kCount};

}  // namespace fastconv::cuda
