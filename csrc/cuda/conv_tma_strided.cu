// Launchers of the dgrad of strides above 1 by TMA and wgmma: its classes, limits and costs.
#include "conv_tma_strided.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "conv_dgrad_strided_tma.cuh"
#include "device_rates.h"
#include "tensor_map.h"

namespace fastconv::cuda {
namespace {

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

// The classes of one axis, those with the most taps first.
struct AxisClasses {
  int count;
  int64_t period, step, lower, most_pixels;
  int64_t reach;  // the largest offset of a tap
  TmaClassAxis at[kTmaMostStride];
};

// stride <= kTmaMostStride.
AxisClasses classes_of(const ConvProblem& p, int axis) {
  const int64_t stride = p.stride[axis], dilation = p.dilation[axis], filter = p.filter[axis];
  AxisClasses c{};
  c.count = static_cast<int>(std::min(stride, p.in[axis]));
  c.period = stride / std::gcd(stride, dilation);
  c.step = c.period * dilation / stride;
  c.most_pixels = tiles(p.in[axis], stride);
  int64_t start[kTmaMostStride] = {};  // in dy, of the class's first pixel and its last tap
  c.lower = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < c.count; ++i) {
    TmaClassAxis& at = c.at[i];
    at.first = i;
    at.less = static_cast<int>(c.most_pixels - tiles(p.in[axis] - i, stride));
    for (int64_t tap = 0; tap < filter; ++tap) {
      const int64_t from = i + p.padding[axis] - tap * dilation;
      if (from % stride != 0) continue;
      ++at.taps;
      at.tap = static_cast<int>(tap);
      start[i] = from / stride;
    }
    if (at.taps > 0) c.lower = std::min(c.lower, start[i]);
  }
  if (c.lower == std::numeric_limits<int64_t>::max()) c.lower = 0;
  for (int i = 0; i < c.count; ++i) {
    TmaClassAxis& at = c.at[i];
    if (at.taps == 0) continue;
    at.shift = static_cast<int>(start[i] - c.lower);
    c.reach = std::max(c.reach, at.shift + (at.taps - 1) * c.step);
  }
  std::stable_sort(c.at, c.at + c.count,
                   [](const TmaClassAxis& a, const TmaClassAxis& b) { return a.taps > b.taps; });
  return c;
}

// dy has an axis D that is more than one plane, padding included.
bool volume_of(const ConvProblem& p) {
  return p.in[0] != 1 || p.out[0] != 1 || p.filter[0] != 1 || p.padding[0] != 0;
}

struct Classes {
  AxisClasses axis[3];
  int64_t count, pixels;  // pixels: of the largest class

  explicit Classes(const ConvProblem& p) : count(1), pixels(p.N) {
    for (int i = 0; i < 3; ++i) {
      axis[i] = classes_of(p, i);
      count *= axis[i].count;
      pixels *= axis[i].most_pixels;
    }
  }
};

std::string outside(const char* what, int64_t value, int64_t low, int64_t high) {
  return std::string(what) + " is " + std::to_string(value) + ", TMA takes " + std::to_string(low) +
         " to " + std::to_string(high);
}

int64_t upper_of(const AxisClasses& c, int64_t pixels, int64_t out) {
  return c.lower + pixels - out;
}

}  // namespace

std::string tma_strided_refusal(const TmaShape& s, const ConvProblem& p) {
  const int64_t widest = std::max({p.stride[0], p.stride[1], p.stride[2]});
  if (widest ==
      1) {  // what else stands against it is of more use than that there is another kernel
    const std::string why = tma_refusal(s, p);
    return why.empty() ? "stride 1, it is for strides above 1" : why;
  }
  if (p.groups != 1) return "groups=" + std::to_string(p.groups) + ", it is for one group";
  for (const auto& [what, extent] : {std::pair("C", p.C), std::pair("K", p.K)})
    if (extent % 8 != 0)
      return std::string(what) + "=" + std::to_string(extent) + " is not a multiple of 8";
  if (widest > kTmaMostStride)
    return "a stride is " + std::to_string(widest) + ", the kernel's limit is " +
           std::to_string(kTmaMostStride);
  const bool volume = volume_of(p);
  const int64_t corner = volume ? 16 : 128, offset = volume ? 32 : 256;
  for (int i = volume ? 0 : 1; i < 3; ++i) {
    // Far beyond what the walk over taps is for.
    if (p.filter[i] > 8 * offset) return outside("a filter's extent", p.filter[i], 1, 8 * offset);
    const AxisClasses c = classes_of(p, i);
    if (c.reach >= offset) return outside("a tap's offset", c.reach, 0, offset - 1);
    for (const int64_t at :
         {c.lower, upper_of(c, c.most_pixels, p.out[i]), upper_of(c, c.most_pixels - 1, p.out[i])})
      if (at < -corner || at >= corner)
        return outside("a corner of the pixels' box", at, -corner, corner - 1);
  }
  constexpr int64_t kLimit = int64_t{1} << 30;
  const Classes classes(p);
  const int64_t largest =
      std::max({p.N * p.in_size(), p.N * p.out_size(), p.C, p.K, p.filter_size(),
                p.filter_size() * tiles(p.K, s.block_k),
                s.turned() ? p.filter_size() * tiles(p.K, kTurnTile) * tiles(p.C, kTurnTile) : 0,
                classes.count * tiles(classes.pixels, s.block_m) * tiles(p.C, s.block_n)});
  if (largest >= kLimit)
    return "an extent is " + std::to_string(largest) + ", the kernel's limit is " +
           std::to_string(kLimit - 1);
  return {};
}

double tma_strided_cost(const TmaShape& s, const ConvProblem& p, const Device& device) {
  const DeviceRates rates = device_rates(device);
  const Classes classes(p);
  const double chunks = double(tiles(p.K, s.block_k));
  const double blocks =
      double(tiles(classes.pixels, s.block_m) * tiles(p.C, s.block_n)) * double(classes.count);
  // A filter's taps are shared out among the classes.
  const double k_tiles = chunks * double(p.filter_size()) / double(classes.count);
  const double most_k_tiles =
      chunks * classes.axis[0].at[0].taps * classes.axis[1].at[0].taps * classes.axis[2].at[0].taps;
  const double stage_flops = 2.0 * s.block_m * s.block_n * s.block_k;
  const double epilogue = warpgroup_store_s(double(s.block_m) * s.block_n / 2, rates, device);
  const double per_sm = s.rate() * rates.warpgroup_16_flops / device.sm_count;
  // The heavy ones come first and the light ones fill up behind them.
  const double rounds = std::max(blocks / device.sm_count, 1.0);
  const double stages = std::max(rounds * k_tiles, most_k_tiles);
  const double multiply =
      stages * stage_flops / (kWarpgroupShare * per_sm) + std::ceil(rounds) * epilogue;
  const double l2_bytes = blocks * k_tiles * 128.0 * (s.block_m + s.w_parts() * s.block_n);
  const double elements = double(p.N) * double(p.C) * double(p.in_size()) +
                          double(p.K) * double(p.C) * double(p.filter_size()) +
                          double(p.N) * double(p.K) * double(p.out_size());
  const double memory =
      std::max(s.scalar_bytes * elements / rates.bytes_per_s, l2_bytes / rates.l2_bytes_per_s);
  return rates.launch_s + std::max(multiply, memory) + tma_filter_cost(s, p, device);
}

int tma_strided_params(const TmaShape& s, const ConvCall& call, ConvDgradStridedTmaParams* params) {
  const ConvProblem& c = call.problem;
  const Classes classes(c);
  ConvDgradStridedTmaParams& p = *params;
  p = ConvDgradStridedTmaParams{};
  const auto bytes = [&](int64_t elements) {
    return static_cast<uint64_t>(elements) * static_cast<uint64_t>(s.scalar_bytes);
  };
  p.volume = volume_of(c);
  const auto divisor = [](int64_t d) {  // what is empty is never divided by
    return FastDivmod(static_cast<uint32_t>(std::max<int64_t>(d, 1)));
  };
  for (int variant = 0; variant < 8; ++variant) {
    int64_t n[3];
    for (int i = 0; i < 3; ++i) n[i] = classes.axis[i].most_pixels - (variant & (4 >> i) ? 1 : 0);
    p.image[variant] = divisor(n[0] * n[1] * n[2]);
    if (variant < 4) p.plane[variant] = divisor(n[1] * n[2]);
    if (variant < 2) p.row[variant] = divisor(n[2]);
    if (n[0] * n[1] * n[2] == 0 || (variant > 3 && !p.volume)) continue;
    // [N, O, P, Q, K]: O is left out where there is but one plane.
    TensorAxes dy{call.y, s.dtype, p.volume ? 5 : 4, {}, {}, s.w_parts() == 2};
    int lower[3], upper[3];
    const uint32_t step[3] = {1, 1, 1};
    dy.extent[0] = static_cast<uint64_t>(c.K);
    dy.stride[0] = bytes(1);
    uint64_t dense = bytes(c.K);
    for (int i = 0; i < dy.rank - 2; ++i) {
      const int axis = 2 - i;
      dy.extent[i + 1] = static_cast<uint64_t>(c.out[axis]);
      dy.stride[i + 1] = dense;
      dense *= static_cast<uint64_t>(c.out[axis]);
      lower[i] = static_cast<int>(classes.axis[axis].lower);
      upper[i] = static_cast<int>(upper_of(classes.axis[axis], n[axis], c.out[axis]));
    }
    dy.extent[dy.rank - 1] = static_cast<uint64_t>(c.N);
    dy.stride[dy.rank - 1] = dense;
    const int error =
        encode_im2col_map(&p.dy[variant], dy, lower, upper, step, static_cast<uint32_t>(s.block_k),
                          static_cast<uint32_t>(s.block_m));
    if (error != cudaSuccess) return error;
  }
  // [K, taps, C], turned [C, taps, K]; a second part lies behind the first, as further rows.
  const int64_t taps = c.filter_size();
  const int64_t inner = s.turned() ? c.K : c.C, outer = s.turned() ? c.C : c.K;
  const TensorAxes w{call.w,
                     s.dtype,
                     3,
                     {static_cast<uint64_t>(inner), static_cast<uint64_t>(taps),
                      static_cast<uint64_t>(outer * s.w_parts())},
                     {bytes(1), bytes(inner), bytes(inner * taps)},
                     s.w_parts() == 2};
  const uint32_t box[3] = {s.turned() ? static_cast<uint32_t>(s.block_k) : 64, 1,
                           static_cast<uint32_t>(s.turned() ? s.block_n : s.block_k)};
  if (const int error = encode_tile_map(&p.w, w, box)) return error;

  p.dx = call.x;
  p.images = static_cast<int>(c.N);
  p.channels = static_cast<int>(c.C);
  for (int i = 0; i < 3; ++i) {
    const AxisClasses& from = classes.axis[i];
    p.extent[i] = static_cast<int>(c.in[i]);
    p.stride[i] = static_cast<int>(c.stride[i]);
    p.lower[i] = static_cast<int>(from.lower);
    p.filter[i] = static_cast<int>(c.filter[i]);
    p.period[i] = static_cast<int>(from.period);
    p.step[i] = static_cast<int>(from.step);
    p.most_pixels[i] = static_cast<int>(from.most_pixels);
    std::copy(from.at, from.at + kTmaMostStride, p.axis[i]);
    p.class_count[i] = divisor(from.count);
  }
  const int64_t rows = tiles(classes.pixels, s.block_m), columns = tiles(c.C, s.block_n);
  p.items = static_cast<int>(classes.count * rows * columns);
  p.class_tiles = divisor(rows * columns);
  p.columns = divisor(columns);
  p.chunks = static_cast<int>(tiles(c.K, s.block_k));
  return cudaSuccess;
}

template <class Config>
int launch_conv_tma_strided(const ConvCall& call) {
  using Tile = typename Config::Tile;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!tma_strided_aligned(Config::shape, call))
    return launch_conv_im2col<typename Config::Fallback>(call);
  return launch_conv_tma_strided_kernel<Config>(conv_dgrad_strided_tma_kernel<Tile>, call);
}

#define FC_TMA_STRIDED_INSTANTIATE(name, dtype, ...) \
  template int launch_conv_tma_strided<TmaStridedConfig<dtype, __VA_ARGS__>>(const ConvCall&);
FC_TMA_STRIDED_INSTANCES(FC_TMA_STRIDED_INSTANTIATE)

}  // namespace fastconv::cuda
