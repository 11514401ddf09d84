// Table of rows, and what the host computes for it: limits, the arrangement of tiles, costs.
#include "conv_rows.h"

#include <algorithm>
#include <limits>

#include "conv_fprop_rows.cuh"
#include "conv_moments.h"
#include "device_rates.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kLimit = int64_t{1} << 30;
constexpr int64_t kMostChannels = 4;
constexpr int64_t kBlockBytes = 163 * 1024;  // of shared memory: what every capability has

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }
int64_t rounded(int64_t extent, int64_t block) { return tiles(extent, block) * block; }

// What does not depend on how a tile's units are arranged.
RowsPlan common_plan(const RowsShape& s, const ConvProblem& p, int64_t aligned) {
  RowsPlan g{};
  const int64_t row = p.in[2] * p.C * s.scalar_bytes, before = p.padding[2] * p.C;
  const auto begins_at = [&](int64_t bytes) { return row % bytes == 0 && aligned % bytes == 0; };
  g.copy = begins_at(16)  ? RowsCopy::kSixteen
           : begins_at(4) ? RowsCopy::kFour
                          : RowsCopy::kElements;
  g.copy_bytes = g.copy == RowsCopy::kSixteen ? 16 : 4;
  if (g.copy != RowsCopy::kElements) {
    // Tiles begin at multiples of eight columns, and so a multiple of a copy from column 0.
    const int64_t each = g.copy_bytes / s.scalar_bytes;
    g.early = rounded(before, each) - before;
  }
  const bool halves = s.scalar_bytes == 2;  // of the words that fragments are read by
  g.lead = halves ? g.early % 2 : 0;
  g.shifted = halves && p.stride[2] * p.C % 2 != 0;
  g.window = p.filter[2] * p.C;
  g.chunks = tiles(g.lead + g.window, s.chunk());
  g.tap_rows = p.filter[0] * p.filter[1];
  g.steps = tiles(g.tap_rows * g.chunks, 2);
  g.w_bytes = g.steps * s.block_n * 32;
  g.parts = tiles(p.K, s.block_n);
  return g;
}

void arrange(const RowsShape& s, const ConvProblem& p, int units_w_log, RowsPlan* g) {
  g->units_w_log = units_w_log;
  g->tile[0] = s.units >> units_w_log;
  g->tile[1] = int64_t{8} << units_w_log;
  g->all_tiles = p.N * p.out[0];
  for (int i = 0; i < 2; ++i) {
    g->tiles[i] = tiles(p.out[i + 1], g->tile[i]);
    g->all_tiles *= g->tiles[i];
  }
  g->box_h = (g->tile[0] - 1) * p.stride[1] + (p.filter[1] - 1) * p.dilation[1] + 1;
  g->rows = p.filter[0] * g->box_h;
  const int64_t elements =
      g->early - g->lead + (g->tile[1] - 1) * p.stride[2] * p.C + g->chunks * s.chunk();
  g->row_bytes = rounded(elements * s.scalar_bytes, 16);
  g->rows_bytes = g->rows * g->row_bytes;
  // Half of the banks further on, so that even and odd pixels find theirs.
  g->shift = g->shifted ? rounded(g->rows_bytes, 128) + 64 : 0;
  g->stage_bytes = g->rows_bytes + g->shift;
  const int64_t table = (2 * g->steps + 2) * 4 * static_cast<int64_t>(sizeof(RowsChunk));
  g->shared_bytes = g->w_bytes + table + s.block_n * 4 + 2 * g->stage_bytes;
}

template <class Each>
void each_arrangement(const RowsShape& s, const ConvProblem& p, RowsPlan* g, const Each& each) {
  for (int units_w_log = 0; s.units >> units_w_log != 0; ++units_w_log) {
    arrange(s, p, units_w_log, g);
    if (g->shared_bytes <= kBlockBytes) each();
  }
}

// Instructions of a warp, to a step and unit, to a step, to an output of a lane, to a copy.
constexpr double kUnitIssues = 14, kStepIssues = 14, kStoreIssues = 5, kCopyIssues = 28;

void estimate(const RowsShape& s, const ConvProblem& p, const Device& device, RowsPlan* g) {
  const DeviceRates rates = device_rates(device);
  const double sms = device.sm_count, clock = device.capability >= 90 ? 1.7e9 : 1.4e9;
  const bool f32 = s.scalar_bytes == 4;
  const double products = s.products == Products::kTf32x3 ? 3 : 1;
  const double tensor_rate = (f32 ? rates.tensor_tf32_flops : rates.tensor_16_flops) / sms;
  const double warps = s.threads / 32, warp_units = double(s.units) / warps;
  const double depth = f32 ? 8 : 16;

  const double tensor =
      2 * 8.0 * s.units * s.block_n * depth * double(g->steps) * products / tensor_rate / kMmaShare;
  const double copies = double(g->rows_bytes) / double(g->copy_bytes);
  const double staged = double(g->rows_bytes) * (g->shifted ? 4 : 1) / 128;
  const double outputs = warp_units * s.block_n / 4;  // of a lane
  const double shared =
      (warps * (double(g->steps) * (2 * warp_units + 18) + outputs / 2) + staged) / clock;
  const double split = s.products == Products::kTf32x3 ? 3 : 1;
  const double issue =
      (warps * (double(g->steps) * split * (kUnitIssues * warp_units + kStepIssues) +
                outputs * kStoreIssues) +
       copies / 32 * kCopyIssues * (g->copy == RowsCopy::kElements ? 1.5 : 1)) /
      4 / clock;
  const double tile = std::max({tensor, shared, issue});

  // An SM's blocks take turns; the last ones leave it to fewer.
  const int64_t sm_bytes = (device.capability >= 90 ? 228 : 164) * 1024;
  const int64_t together =
      std::max<int64_t>(1, std::min<int64_t>(s.min_blocks, sm_bytes / (g->shared_bytes + 1024)));
  const int64_t most = std::max<int64_t>(1, device.sm_count * together / g->parts);
  const int64_t rounds = tiles(g->all_tiles, most);
  const int64_t per_part = tiles(g->all_tiles, rounds);
  g->blocks = per_part * g->parts;
  const double sharing = std::ceil(double(g->blocks) / sms);
  const double l2_rate = rates.l2_bytes_per_s / sms;
  const double first = 2 * kFirstBytes_s + sharing *
                                               double(p.K / g->parts * g->tap_rows * g->window) *
                                               (s.scalar_bytes / l2_rate + 12 / 32.0 / 4 / clock);
  const double alone =
      tile + kFirstBytes_s;  // stores and the next rows wait for the sums of one block
  const double sums = first + double(rounds) * std::max(sharing * tile, alone);
  const double elements =
      double(p.N) * (double(p.C) * double(p.in_size()) + double(p.K) * double(p.out_size()));
  g->seconds = rates.launch_s + std::max(sums, s.scalar_bytes * elements / rates.bytes_per_s);
}

}  // namespace

std::string rows_refusal(const RowsShape& s, const ConvProblem& p) {
  const auto text = [](int64_t v) { return std::to_string(v); };
  if (p.groups != 1) return "groups=" + text(p.groups) + ", it is for one group";
  if (p.C > kMostChannels)
    return "C=" + text(p.C) + ", it is for at most " + text(kMostChannels) + " channels";
  if (p.dilation[2] != 1 && p.filter[2] != 1)
    return "dilation " + text(p.dilation[2]) + " along W, it is for windows of neighbours";
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t padded = p.in[axis] + 2 * p.padding[axis];
    if (padded >= kLimit / kMostChannels)
      return "an extent is " + text(padded) + ", the kernel's limit is " +
             text(kLimit / kMostChannels - 1);
  }
  RowsPlan g = common_plan(s, p, 2);
  int64_t smallest = std::numeric_limits<int64_t>::max(), most = 0;
  // At any alignment: the one that asks for most shared memory.
  for (const int64_t aligned : {2, 4, 16}) {
    int64_t least = std::numeric_limits<int64_t>::max();
    g = common_plan(s, p, s.scalar_bytes == 4 ? std::max<int64_t>(aligned, 4) : aligned);
    for (int units_w_log = 0; s.units >> units_w_log != 0; ++units_w_log) {
      arrange(s, p, units_w_log, &g);
      least = std::min(least, g.shared_bytes);
      most = std::max(most, g.all_tiles);
    }
    smallest = aligned == 2 ? least : std::max(smallest, least);
  }
  if (smallest > kBlockBytes)
    return "its rows and weights take " + text(smallest) + " bytes of shared memory, there are " +
           text(kBlockBytes);
  if (most * g.parts >= kLimit)
    return text(most * g.parts) + " tiles, the kernel's limit is " + text(kLimit - 1);
  if (p.out[1] * p.out[2] >= kLimit)
    return "a plane of y has " + text(p.out[1] * p.out[2]) + " pixels, the kernel's limit is " +
           text(kLimit - 1);
  return {};
}

RowsPlan rows_plan(const RowsShape& s, const ConvProblem& p, const Device& device,
                   int64_t aligned) {
  RowsPlan g = common_plan(s, p, aligned), best{};
  best.seconds = std::numeric_limits<double>::infinity();
  each_arrangement(s, p, &g, [&] {
    estimate(s, p, device, &g);
    // Of equally fast ones that which reads less.
    if (g.seconds < best.seconds || (g.seconds == best.seconds &&
                                     g.all_tiles * g.rows_bytes < best.all_tiles * best.rows_bytes))
      best = g;
  });
  return best;
}

namespace {

int64_t alignment(const void* base) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(base);
  return address % 16 == 0 ? 16 : address % 4 == 0 ? 4 : 2;
}

ConvRowsParams rows_params(const ConvCall& call, const RowsPlan& g) {
  const ConvProblem& c = call.problem;
  const auto number = [](int64_t v) { return static_cast<int>(v); };
  const auto divisor = [](int64_t v) { return FastDivmod(static_cast<uint32_t>(v)); };
  ConvRowsParams p{};
  p.x = call.x;
  p.w = call.w;
  p.bias = call.bias;
  p.y = call.y;
  p.epilogue = store_epilogue<float>(call.epilogue);
  p.y_pitch = call.y_channels();
  p.image_rows = c.in[0] * c.in[1];
  p.copy = g.copy;
  p.w_vec = alignment(call.w) == 16;
  p.vec8 = alignment(call.y) == 16 && p.y_pitch % 8 == 0;
  p.filters = number(c.K);
  p.parts = number(g.parts);
  p.row_elements = number(c.in[2] * c.C);
  for (int i = 0; i < 2; ++i) {
    p.in[i] = number(c.in[i]);
    p.stride[i] = number(c.stride[i]);
    p.padding[i] = number(c.padding[i]);
    p.dilation[i] = number(c.dilation[i]);
  }
  for (int i = 0; i < 3; ++i) p.out[i] = number(c.out[i]);
  p.column_step = number(c.stride[2] * c.C);
  p.first = number(-c.padding[2] * c.C - g.early);
  p.begin = number(g.early - g.lead);
  p.window = number(g.window);
  p.lead = number(g.lead);
  p.taps_h = number(c.filter[1]);
  p.tap_rows = number(g.tap_rows);
  p.chunks = number(g.chunks);
  p.steps = number(g.steps);
  p.units_w_log = g.units_w_log;
  p.tile_h = number(g.tile[0]);
  p.tile_w = number(g.tile[1]);
  p.tiles_h = divisor(g.tiles[0]);
  p.tiles_w = divisor(g.tiles[1]);
  p.planes = divisor(c.out[0]);
  p.tiles = number(g.all_tiles);
  p.box_h = divisor(g.box_h);
  p.row_copies = divisor(g.row_bytes / g.copy_bytes);
  p.copies = number(g.rows_bytes / g.copy_bytes);
  p.row_bytes = number(g.row_bytes);
  p.shifted = number(g.shift);
  p.stage_bytes = number(g.stage_bytes);
  return p;
}

template <DType dtype, Products products, class Tile_>
struct RowsConfig {
  using Tile = Tile_;
  static constexpr RowsShape shape{dtype,
                                   products,
                                   static_cast<int>(sizeof(typename Tile::scalar_t)),
                                   Tile::FRAGMENTS,
                                   Tile::UNITS,
                                   Tile::BLOCK_N,
                                   Tile::MIN_BLOCKS,
                                   Tile::NUM_THREADS};
};

template <class Config>
int launch(const ConvCall& call) {
  using Tile = typename Config::Tile;
  const RowsPlan g = rows_plan(Config::shape, call.problem, call.device, alignment(call.x));
  return launch_with_moments(
      call, Direction::kFprop, g.all_tiles, [&](const MomentTiles<float>& moments) {
        ConvRowsParams p = rows_params(call, g);
        p.moments = moments;
        const LaunchConfig config{dim3(static_cast<unsigned>(g.blocks)), dim3(Tile::NUM_THREADS),
                                  static_cast<size_t>(g.shared_bytes), call.stream};
        return launch_kernel(conv_fprop_rows_kernel<Tile>, config, p);
      });
}

template <class Config>
std::string refusal(const ConvProblem& p) {
  return rows_refusal(Config::shape, p);
}
int64_t no_workspace(const ConvProblem&, const Device&) { return 0; }
// For whichever alignment x comes with: each may arrange its tiles in its own way.
template <class Config>
int64_t stats_workspace(const ConvProblem& p, const Device& device) {
  int64_t most = 0;
  for (const int64_t aligned : {2, 4, 16})
    most = std::max(most, rows_plan(Config::shape, p, device, aligned).all_tiles);
  return moments_bytes(p.K, most);
}
template <class Config>
double cost(const ConvProblem& p, const Device& device) {
  return rows_plan(Config::shape, p, device, 16).seconds;
}

// X(name, DType, Products, tile). Names end in a tile's pixels x filters. The parts of split
// operands leave no registers for the wide tile, and fp32's bytes no use for it.
#define FC_ROWS_16(X, dtype, name, scalar_t)                         \
  X("fprop_" name "_nhwc_mma_256x64", DType::dtype, Products::kIeee, \
    (RowsTile<scalar_t, GemmMath::kMma16, 4, 2>))                    \
  X("fprop_" name "_nhwc_mma_128x64", DType::dtype, Products::kIeee, \
    (RowsTile<scalar_t, GemmMath::kMma16, 2, 4>))
#define FC_ROWS_INSTANCES(X)                                            \
  FC_ROWS_16(X, kBFloat16, "bf16", __nv_bfloat16)                       \
  FC_ROWS_16(X, kFloat16, "f16", __half)                                \
  X("fprop_tf32_nhwc_mma_128x64", DType::kFloat32, Products::kTf32,     \
    (RowsTile<float, GemmMath::kTf32, 2, 4>))                           \
  X("fprop_tf32x3_nhwc_mma_128x64", DType::kFloat32, Products::kTf32x3, \
    (RowsTile<float, GemmMath::kTf32x3, 2, 3>))

// A tile in parentheses, so that its commas survive the macros.
template <class>
struct RowsArgument;
template <class Tile>
struct RowsArgument<void(Tile)> {
  using type = Tile;
};
#define FC_ROWS_CONFIG(dtype, products, tile) \
  RowsConfig<dtype, products, RowsArgument<void tile>::type>
#define FC_ROWS_ROW(name, dtype, products, tile)   \
  {name,                                           \
   Direction::kFprop,                              \
   dtype,                                          \
   Layout::kNHWC,                                  \
   products,                                       \
   refusal<FC_ROWS_CONFIG(dtype, products, tile)>, \
   no_workspace,                                   \
   cost<FC_ROWS_CONFIG(dtype, products, tile)>,    \
   launch<FC_ROWS_CONFIG(dtype, products, tile)>,  \
   stats_workspace<FC_ROWS_CONFIG(dtype, products, tile)>},
const ConvInstance kInstances[] = {FC_ROWS_INSTANCES(FC_ROWS_ROW)};
constexpr int kCount = sizeof(kInstances) / sizeof(kInstances[0]);

#define FC_ROWS_SHAPE(name, dtype, products, tile) &FC_ROWS_CONFIG(dtype, products, tile)::shape,
const RowsShape* const kShapes[kCount] = {FC_ROWS_INSTANCES(FC_ROWS_SHAPE)};

}  // namespace

const RowsShape* find_rows_shape(const std::string& instance) {
  for (int i = 0; i < kCount; ++i)
    if (instance == kInstances[i].name) return kShapes[i];
  return nullptr;
}

const ConvAlgorithm conv_rows{"rows", kInstances, kCount};

}  // namespace fastconv::cuda
