// Table of tma, and what the host computes for it: limits, costs, arguments.
#include "conv_tma.h"

#include <algorithm>
#include <cstring>

#include "cluster_room.h"
#include "conv_result.h"
#include "conv_tma_streamk.h"
#include "conv_tma_strided.h"
#include "conv_tma_tf32.h"
#include "conv_tma_wgrad.h"
#include "device_rates.h"
#include "tensor_map.h"

namespace fastconv::cuda {
namespace {

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

// The product as the kernel does it: the tensor read pixel by pixel, and where a pixel of the
// result starts in it.
struct TmaProduct {
  int64_t src_channels, dst_channels, pixels, taps;
  int64_t src[3], dst[3];      // extents D, H, W
  int64_t stride[3];           // of src, per pixel of dst
  int64_t lower[3], upper[3];  // the corners of the box of first taps
  bool volume;
};

TmaProduct product_of(const TmaShape& s, const ConvProblem& p) {
  TmaProduct g{};
  g.src_channels = s.dgrad() ? p.K : p.C;
  g.dst_channels = s.dgrad() ? p.C : p.K;
  g.pixels = p.N * (s.dgrad() ? p.in_size() : p.out_size());
  g.taps = p.filter_size();
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t reach = (p.filter[axis] - 1) * p.dilation[axis];
    g.src[axis] = s.dgrad() ? p.out[axis] : p.in[axis];
    g.dst[axis] = s.dgrad() ? p.in[axis] : p.out[axis];
    g.stride[axis] = s.dgrad() ? 1 : p.stride[axis];
    g.lower[axis] = s.dgrad() ? p.padding[axis] - reach : -p.padding[axis];
    g.upper[axis] = -reach - g.lower[axis];
  }
  g.volume = g.src[0] != 1 || p.filter[0] != 1 || p.padding[0] != 0;
  return g;
}

constexpr int64_t kBand = 8;  // columns of tiles that run together
constexpr double kTie = 1e-3;
constexpr double kHandOver_s = 1e-6;  // from a flag's release to who waits for it

std::string outside(const char* what, int64_t value, int64_t low, int64_t high) {
  return std::string(what) + " is " + std::to_string(value) + ", TMA takes " + std::to_string(low) +
         " to " + std::to_string(high);
}

}  // namespace

std::string tma_refusal(const TmaShape& s, const ConvProblem& p) {
  if (p.groups != 1) return "groups=" + std::to_string(p.groups) + ", it is for one group";
  const int vec = 16 / s.scalar_bytes;
  const auto multiple = [&](const char* what, int64_t extent) {
    return extent % vec == 0 ? std::string()
                             : std::string(what) + "=" + std::to_string(extent) +
                                   " is not a multiple of " + std::to_string(vec);
  };
  std::string why = multiple("C", p.C);
  if (why.empty() && s.dgrad()) why = multiple("K", p.K);
  if (!why.empty()) return why;
  const TmaProduct g = product_of(s, p);
  const int64_t corner = g.volume ? 16 : 128, offset = g.volume ? 32 : 256;
  for (int axis = g.volume ? 0 : 1; axis < 3; ++axis) {
    if (s.dgrad() && p.stride[axis] != 1)
      return "stride " + std::to_string(p.stride[axis]) + ", its dgrad is for stride 1";
    if (g.stride[axis] > 8) return outside("a stride", g.stride[axis], 1, 8);
    const int64_t reach = (p.filter[axis] - 1) * p.dilation[axis];
    if (reach >= offset) return outside("a tap's offset", reach, 0, offset - 1);
    for (const int64_t at : {g.lower[axis], g.upper[axis]})
      if (at < -corner || at >= corner)
        return outside("a corner of the pixels' box", at, -corner, corner - 1);
  }
  constexpr int64_t kLimit = int64_t{1} << 30;
  const int64_t largest =
      std::max({g.pixels, g.src_channels, g.dst_channels, g.taps, p.N * g.src[0] * g.src[1],
                g.taps * tiles(g.src_channels, s.block_k),
                tiles(g.pixels, s.block_m) * tiles(g.dst_channels, s.block_n) * 2,
                s.turned() ? g.taps * tiles(p.K, kTurnTile) * tiles(p.C, kTurnTile) : 0});
  if (largest >= kLimit)
    return "an extent is " + std::to_string(largest) + ", the kernel's limit is " +
           std::to_string(kLimit - 1);
  const int64_t k_tiles = g.taps * tiles(g.src_channels, s.block_k);
  if (k_tiles < s.split)
    return "gemm_k is " + std::to_string(k_tiles) + " tiles, it cuts it in " +
           std::to_string(s.split);
  // Those of all shared tiles are counted in 32 bits.
  constexpr int64_t kLongest = int64_t{1} << 20;
  if (s.streams && k_tiles >= kLongest)
    return "gemm_k is " + std::to_string(k_tiles) + " tiles, the kernel's limit is " +
           std::to_string(kLongest - 1);
  return {};
}

int tma_room(const Device& device, int cluster) { return cluster_room(device, cluster); }

TmaStream tma_stream(const TmaShape& s, const ConvProblem& p, const Device& device) {
  const TmaProduct g = product_of(s, p);
  TmaStream to{};
  const int64_t count =
      tiles(g.pixels, s.block_m * s.pair_m) * tiles(g.dst_channels, s.block_n * s.pair_n);
  to.k_tiles = g.taps * tiles(g.src_channels, s.block_k);
  const int64_t room = tma_room(device, s.cluster()), rounds = count / room;
  // With the last whole round: then a cluster's stretch is as long as a tile or longer, so that two
  // clusters share one at most. Where there is no whole round a tile has as many as it takes.
  to.rest = count % room == 0 ? 0 : count - std::max<int64_t>(0, rounds - 1) * room;
  to.whole = count - to.rest;
  to.clusters = to.rest == 0 ? room : std::min(room, to.rest * to.k_tiles);
  to.share = to.rest * to.k_tiles / to.clusters;
  to.longer = to.rest * to.k_tiles % to.clusters;
  return to;
}

TmaFigures tma_figures(const TmaShape& s, const ConvProblem& p, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const TmaProduct g = product_of(s, p);
  TmaFigures f{};
  f.clusters = tiles(g.pixels, s.block_m * s.pair_m) * tiles(g.dst_channels, s.block_n * s.pair_n);
  f.rounds = tiles(f.clusters, tma_room(device, s.cluster()));
  const int64_t k_tiles = g.taps * tiles(g.src_channels, s.block_k);
  f.k_tiles = tiles(k_tiles, s.split);
  const double stage_flops = 2.0 * s.block_m * s.block_n * s.block_k;
  // By two warpgroups. Of a split tile a block stores its share, and passes the rest on.
  const double tile_s = warpgroup_store_s(double(s.block_m) * s.block_n / 2, rates, device);
  const double epilogue = tile_s * ((s.split > 1 ? 0.25 : 0.0) + 1.0 / s.split);
  // One block to an SM: its own rate, whether others run or not.
  const double per_sm = s.rate() * rates.warpgroup_16_flops / device.sm_count;
  const double syncs = s.split > 1 ? 2.0 * double(f.rounds) : s.cluster() > 1 ? 1.0 : 0.0;
  double most = double(f.rounds * f.k_tiles);  // stages of one block
  double left_bytes = 0;
  if (s.streams) {
    const TmaStream stream = tma_stream(s, p, device);
    most = double(stream.whole / stream.clusters * k_tiles + stream.share + (stream.longer != 0));
    if (stream.rest != 0) {
      const double tile_bytes = 4.0 * s.block_m * s.block_n;
      const int64_t added = tiles(k_tiles - 1, stream.share);  // to one tile, at most
      left_bytes = tile_bytes * double(stream.clusters * s.cluster());
      // Written once and read so many times, at the rate that L2 has for each SM.
      f.hand_over_s =
          kHandOver_s + tile_bytes * double(1 + added) * device.sm_count / rates.l2_bytes_per_s;
    }
  }
  f.multiply_s = most * stage_flops / (kWarpgroupShare * per_sm) + double(f.rounds) * epilogue +
                 syncs * kClusterSync_s + f.hand_over_s;
  const double stages = double(f.clusters) * s.pair_m * s.pair_n * double(k_tiles);
  const double operands =
      stages * 128.0 * (double(s.block_m) / s.pair_n + double(s.w_parts() * s.block_n) / s.pair_m);
  f.l2_bytes_per_flop = operands / (stages * stage_flops);
  f.l2_bytes = operands + 2 * left_bytes;
  f.wave_efficiency = stages / (most * device.sm_count);
  return f;
}

double tma_cost(const TmaShape& s, const ConvProblem& p, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const TmaFigures f = tma_figures(s, p, device);
  const double elements = double(p.N) * double(p.C) * double(p.in_size()) +
                          double(p.K) * double(p.C) * double(p.filter_size()) +
                          double(p.N) * double(p.K) * double(p.out_size());
  const double l2 = f.l2_bytes / rates.l2_bytes_per_s;
  const double memory = std::max(s.scalar_bytes * elements / rates.bytes_per_s, l2);
  // Of two that are bound by the same thing, the one that reads less.
  return rates.launch_s + std::max(f.multiply_s, memory) + kTie * l2 +
         tma_filter_cost(s, p, device);
}

double tma_filter_cost(const TmaShape& s, const ConvProblem& p, const Device& device) {
  if (!s.filter_prepared()) return 0;
  const DeviceRates rates = device_rates(device);
  return rates.launch_s +
         (4.0 * double(p.K * p.C * p.filter_size()) + double(tma_filter_bytes(s, p))) /
             rates.bytes_per_s;
}

bool tma_aligned(const TmaShape& s, const ConvCall& call) {
  const void* src = s.dgrad() ? call.y : call.x;
  return reinterpret_cast<uintptr_t>(src) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(call.w) % 16 == 0;
}

int tma_params(const TmaShape& s, const ConvCall& call, ConvTmaParams* params) {
  const ConvProblem& c = call.problem;
  const TmaProduct g = product_of(s, c);
  ConvTmaParams& p = *params;
  p = ConvTmaParams{};

  const auto bytes = [&](int64_t elements) {
    return static_cast<uint64_t>(elements) * static_cast<uint64_t>(s.scalar_bytes);
  };
  // [N, D, H, W, C], W's neighbour being C: D is left out where there is but one plane.
  TensorAxes src{s.dgrad() ? call.y : call.x, s.dtype, g.volume ? 5 : 4, {}, {}, s.w_parts() == 2};
  int lower[3], upper[3];
  uint32_t step[3];
  src.extent[0] = static_cast<uint64_t>(g.src_channels);
  src.stride[0] = bytes(1);
  uint64_t dense = bytes(g.src_channels);
  for (int i = 0; i < src.rank - 2; ++i) {
    const int axis = 2 - i;
    src.extent[i + 1] = static_cast<uint64_t>(g.src[axis]);
    src.stride[i + 1] = dense;
    dense *= static_cast<uint64_t>(g.src[axis]);
    lower[i] = static_cast<int>(g.lower[axis]);
    upper[i] = static_cast<int>(g.upper[axis]);
    step[i] = static_cast<uint32_t>(g.stride[axis]);
  }
  src.extent[src.rank - 1] = static_cast<uint64_t>(c.N);
  src.stride[src.rank - 1] = dense;
  int error = encode_im2col_map(&p.src, src, lower, upper, step, static_cast<uint32_t>(s.block_k),
                                static_cast<uint32_t>(s.block_m / s.pair_n));
  if (error != cudaSuccess) return error;
  // [K, taps, C], turned [C, taps, K]; a second part lies behind the first, as further rows.
  const bool k_major = !s.dgrad() || s.turned();
  const int64_t inner = s.turned() ? c.K : c.C, outer = s.turned() ? c.C : c.K;
  const TensorAxes w{call.w,
                     s.dtype,
                     3,
                     {static_cast<uint64_t>(inner), static_cast<uint64_t>(g.taps),
                      static_cast<uint64_t>(outer * s.w_parts())},
                     {bytes(1), bytes(inner), bytes(inner * g.taps)},
                     s.w_parts() == 2};
  const uint32_t box[3] = {static_cast<uint32_t>(s.block_k), 1,
                           static_cast<uint32_t>(k_major ? s.block_n / s.pair_m : s.block_k)};
  error = encode_tile_map(&p.w, w, box);
  if (error != cudaSuccess) return error;

  p.result = conv_result(call, s.direction, s.scalar_bytes, g.pixels);
  if (p.result.by_tma) {
    constexpr int kRows = 16;  // of a warp
    error = encode_result_map(&p.dst, p.result, s.dtype, s.scalar_bytes, kRows);
    if (error != cudaSuccess) return error;
  }
  p.volume = g.volume;
  for (int axis = 0; axis < 3; ++axis) {
    p.stride[axis] = static_cast<int>(g.stride[axis]);
    p.first[axis] = static_cast<int>(g.lower[axis]);
    p.filter[axis] = static_cast<int>(c.filter[axis]);
    p.dilation[axis] = static_cast<int>(c.dilation[axis]);
  }
  const auto divisor = [](int64_t d) { return FastDivmod(static_cast<uint32_t>(d)); };
  p.image = divisor(g.dst[0] * g.dst[1] * g.dst[2]);
  p.plane = divisor(g.dst[1] * g.dst[2]);
  p.row = divisor(g.dst[2]);
  p.cluster = divisor(s.cluster());
  p.split = s.split;
  p.tile_m = s.block_m * s.pair_m;
  p.tile_n = s.block_n * s.pair_n;
  p.shares_src = s.pair_n > 1;
  p.shares_w = s.pair_m > 1;
  const int64_t rows = tiles(g.pixels, p.tile_m), columns = tiles(g.dst_channels, p.tile_n);
  const int64_t band = std::min(columns, kBand / s.pair_n);
  p.tiles = static_cast<int>(rows * columns);
  p.band_tiles = divisor(rows * band);
  p.band = divisor(band);
  p.last_band = static_cast<int>(tiles(columns, band) - 1);
  p.last_band_width = divisor(columns - p.last_band * band);
  p.chunks = divisor(tiles(g.src_channels, s.block_k));
  p.filter_h = divisor(c.filter[1]);
  p.filter_w = divisor(c.filter[2]);
  p.k_tiles = static_cast<int>(g.taps) * static_cast<int>(p.chunks.divisor);
  return cudaSuccess;
}

namespace {

template <class Config>
std::string refusal(const ConvProblem& p) {
  std::string why = tma_refusal(Config::shape, p);
  return why.empty() ? im2col_refusal(Config::Fallback::shape, p) : why;
}
int64_t no_workspace(const ConvProblem&, const Device&) { return 0; }
template <class Config>
int64_t filter_workspace(const ConvProblem& p, const Device&) {
  return tma_filter_bytes(Config::shape, p);
}
// Also enough for the fallback's.
template <class Config>
int64_t stats_workspace(const ConvProblem& p, const Device& device) {
  const int64_t moments = moments_bytes(p.K, moment_tiles<typename Config::Tile>(p));
  return std::max(im2col_stats_workspace(p, device),
                  moments_begin(tma_filter_bytes(Config::shape, p)) + moments);
}
template <class Config>
constexpr auto kStatsWorkspace =
    Config::shape.dgrad() || Config::shape.split > 1 ? nullptr : stats_workspace<Config>;
template <class Config>
double cost(const ConvProblem& p, const Device& device) {
  return tma_cost(Config::shape, p, device);
}

template <Direction direction, DType dtype, class scalar_t, int M, int N, int STAGES,
          int PAIR_M = 1, int PAIR_N = 1, int SPLIT = 1>
using Config16 = TmaConfig<direction, dtype, WgmmaTile<scalar_t, M, N, STAGES>,
                           Im2colNhwcVec<direction, Mma128<scalar_t>, Mma64<scalar_t>, 8>,
                           Products::kIeee, PAIR_M, PAIR_N, SPLIT>;

#define FC_TMA_INSTANCE(direction, name, dtype, ...)         \
  {name,                                                     \
   direction,                                                \
   dtype,                                                    \
   Layout::kNHWC,                                            \
   Products::kIeee,                                          \
   refusal<Config16<direction, dtype, __VA_ARGS__>>,         \
   no_workspace,                                             \
   cost<Config16<direction, dtype, __VA_ARGS__>>,            \
   launch_conv_tma<Config16<direction, dtype, __VA_ARGS__>>, \
   kStatsWorkspace<Config16<direction, dtype, __VA_ARGS__>>, \
   90},
#define FC_TMA_TF32_ROW(name, ...)    \
  {name,                              \
   __VA_ARGS__::shape.direction,      \
   DType::kFloat32,                   \
   Layout::kNHWC,                     \
   __VA_ARGS__::shape.products,       \
   refusal<__VA_ARGS__>,              \
   filter_workspace<__VA_ARGS__>,     \
   cost<__VA_ARGS__>,                 \
   launch_conv_tma_tf32<__VA_ARGS__>, \
   kStatsWorkspace<__VA_ARGS__>,      \
   90},
template <class Config>
std::string strided_refusal(const ConvProblem& p) {
  std::string why = tma_strided_refusal(Config::shape, p);
  return why.empty() ? im2col_refusal(Config::Fallback::shape, p) : why;
}
template <class Config>
double strided_cost(const ConvProblem& p, const Device& device) {
  return tma_strided_cost(Config::shape, p, device);
}

#define FC_TMA_STRIDED_ROW(name, dtype, ...)                      \
  {name,                                                          \
   Direction::kDgrad,                                             \
   dtype,                                                         \
   Layout::kNHWC,                                                 \
   Products::kIeee,                                               \
   strided_refusal<TmaStridedConfig<dtype, __VA_ARGS__>>,         \
   no_workspace,                                                  \
   strided_cost<TmaStridedConfig<dtype, __VA_ARGS__>>,            \
   launch_conv_tma_strided<TmaStridedConfig<dtype, __VA_ARGS__>>, \
   nullptr,                                                       \
   90},

#define FC_TMA_STRIDED_TF32_ROW(name, ...)    \
  {name,                                      \
   Direction::kDgrad,                         \
   DType::kFloat32,                           \
   Layout::kNHWC,                             \
   __VA_ARGS__::shape.products,               \
   strided_refusal<__VA_ARGS__>,              \
   filter_workspace<__VA_ARGS__>,             \
   strided_cost<__VA_ARGS__>,                 \
   launch_conv_tma_strided_tf32<__VA_ARGS__>, \
   nullptr,                                   \
   90},

template <class Config>
std::string wgrad_refusal(const ConvProblem& p) {
  std::string why = tma_wgrad_refusal(Config::shape, p);
  return why.empty() ? im2col_refusal(Config::Fallback::shape, p) : why;
}
template <class Config>
int64_t wgrad_workspace(const ConvProblem& p, const Device& device) {
  return tma_wgrad_workspace(Config::shape, p, device);
}
template <class Config>
double wgrad_cost(const ConvProblem& p, const Device& device) {
  return tma_wgrad_cost(Config::shape, p, device);
}

#define FC_TMA_WGRAD_ROW(name, dtype, ...)                    \
  {name,                                                      \
   Direction::kWgrad,                                         \
   dtype,                                                     \
   Layout::kNHWC,                                             \
   Products::kIeee,                                           \
   wgrad_refusal<TmaWgradConfig<dtype, __VA_ARGS__>>,         \
   wgrad_workspace<TmaWgradConfig<dtype, __VA_ARGS__>>,       \
   wgrad_cost<TmaWgradConfig<dtype, __VA_ARGS__>>,            \
   launch_conv_tma_wgrad<TmaWgradConfig<dtype, __VA_ARGS__>>, \
   nullptr,                                                   \
   90},

template <class Config>
int64_t stream_workspace(const ConvProblem& p, const Device& device) {
  return tma_left_bytes(Config::shape, p, device);
}
template <class Config>
int64_t stream_stats_workspace(const ConvProblem& p, const Device& device) {
  const int64_t moments = moments_bytes(p.K, moment_tiles<typename Config::Tile>(p));
  return std::max(im2col_stats_workspace(p, device),
                  moments_begin(tma_left_bytes(Config::shape, p, device)) + moments);
}
template <class Config>
constexpr auto kStreamStatsWorkspace =
    Config::shape.dgrad() ? nullptr : stream_stats_workspace<Config>;

#define FC_TMA_STREAMK_ROW(name, ...)    \
  {name,                                 \
   __VA_ARGS__::shape.direction,         \
   __VA_ARGS__::shape.dtype,             \
   Layout::kNHWC,                        \
   Products::kIeee,                      \
   refusal<__VA_ARGS__>,                 \
   stream_workspace<__VA_ARGS__>,        \
   cost<__VA_ARGS__>,                    \
   launch_conv_tma_streamk<__VA_ARGS__>, \
   kStreamStatsWorkspace<__VA_ARGS__>,   \
   90},

#define FC_TMA_SHAPE(direction, name, dtype, ...) \
  {name, Config16<direction, dtype, __VA_ARGS__>::shape},
#define FC_TMA_TILES(ROW, d, dn, dtype, name, scalar_t)                                          \
  ROW(d, dn "_" name "_nhwc_wgmma_128x128x64", dtype, scalar_t, 128, 128, 5)                     \
  ROW(d, dn "_" name "_nhwc_wgmma_256x128x64", dtype, scalar_t, 256, 128, 4)                     \
  ROW(d, dn "_" name "_nhwc_wgmma_128x256x64", dtype, scalar_t, 128, 256, 4)                     \
  ROW(d, dn "_" name "_nhwc_wgmma_128x64x64", dtype, scalar_t, 128, 64, 6)                       \
  ROW(d, dn "_" name "_nhwc_wgmma_128x128x64_pair_n", dtype, scalar_t, 128, 128, 5, 1, 2)        \
  ROW(d, dn "_" name "_nhwc_wgmma_256x128x64_pair_m", dtype, scalar_t, 256, 128, 4, 2, 1)        \
  ROW(d, dn "_" name "_nhwc_wgmma_128x256x64_pair_m", dtype, scalar_t, 128, 256, 4, 2, 1)        \
  ROW(d, dn "_" name "_nhwc_wgmma_256x128x64_pair_n_split2", dtype, scalar_t, 256, 128, 4, 1, 2, \
      2)                                                                                         \
  ROW(d, dn "_" name "_nhwc_wgmma_256x128x64_pair_n_split4", dtype, scalar_t, 256, 128, 4, 1, 2, 4)
#define FC_TMA_TABLE(ROW)                                                                \
  FC_TMA_TILES(ROW, Direction::kFprop, "fprop", DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_TMA_TILES(ROW, Direction::kFprop, "fprop", DType::kFloat16, "f16", __half)          \
  FC_TMA_TILES(ROW, Direction::kDgrad, "dgrad", DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_TMA_TILES(ROW, Direction::kDgrad, "dgrad", DType::kFloat16, "f16", __half)

const ConvInstance kInstances[] = {
    FC_TMA_TABLE(FC_TMA_INSTANCE) FC_TMA_STREAMK(FC_TMA_STREAMK_ROW)
        FC_TMA_STRIDED_INSTANCES(FC_TMA_STRIDED_ROW) FC_TMA_WGRAD_INSTANCES(FC_TMA_WGRAD_ROW)
            FC_TMA_TF32(FC_TMA_TF32_ROW) FC_TMA_STRIDED_TF32(FC_TMA_STRIDED_TF32_ROW)};

struct NamedShape {
  const char* name;
  TmaShape shape;
};
#define FC_TMA_CONFIG_SHAPE(name, ...) {name, __VA_ARGS__::shape},
constexpr NamedShape kShapes[] = {FC_TMA_TABLE(FC_TMA_SHAPE) FC_TMA_STREAMK(FC_TMA_CONFIG_SHAPE)
                                      FC_TMA_TF32(FC_TMA_CONFIG_SHAPE)};

}  // namespace

bool tma_figures(const char* name, const ConvProblem& p, const Device& device, TmaFigures* to) {
  for (const NamedShape& each : kShapes)
    if (std::strcmp(name, each.name) == 0) {
      *to = tma_figures(each.shape, p, device);
      return true;
    }
  return false;
}

extern const ConvAlgorithm conv_tma = {"tma", kInstances,
                                       sizeof(kInstances) / sizeof(kInstances[0])};

}  // namespace fastconv::cuda
