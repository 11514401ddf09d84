// Table of the inception module's kernels, and what the host computes for them: limits, grids,
// costs.
#include "inception.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device_rates.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kIndexLimit = int64_t{1} << 31;

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

int64_t joined_rows(const InceptionCall& c) { return c.K1 + c.R3 + c.R5; }

int64_t blocks_of(const InceptionShape& s, const InceptionCall& c, int64_t channels) {
  return tiles(c.pixels(), s.block_pixels()) * tiles(channels, s.block_channels());
}

std::string exceeds(const char* what, int64_t value, int64_t limit) {
  return std::string(what) + " is " + std::to_string(value) + ", the kernel's limit is " +
         std::to_string(limit);
}

double element_bytes(const InceptionShape& s, const InceptionCall& c) {
  const double weights = double(joined_rows(c) + c.KP) * double(c.C) +
                         double(c.K3 * c.R3) * double(c.extent3 * c.extent3) +
                         double(c.K5 * c.R5) * double(c.extent5 * c.extent5);
  return s.scalar_bytes * (weights + double(c.pixels()) * double(c.C + c.R3 + c.R5 + c.outputs()));
}

// Seconds of one grid of two products.
struct Work {
  int64_t blocks, gemm_k;
  double tile;  // time of a tile of gemm_k over that of a plain one
};
constexpr int64_t kOverheadTiles = 2;      // of gemm_k: filling the ring, epilogue
constexpr double kTileLatency_s = 0.1e-6;  // of one more tile of gemm_k while nothing else is busy
constexpr double kPoolTile = 2;            // nine reads to an element

// Fraction of the peak that a full SM reaches, as im2col's. Not measured on a GPU.
double efficiency(const InceptionShape& s) {
  const bool fma = s.math == GemmMath::kFma;
  double share = (fma ? kFmaShare : kMmaShare) * 0.7;  // tiles of 64x64
  if (s.block_m * s.block_n < 64 * 64) share *= 0.7;
  if (s.math == GemmMath::kTf32x3) share *= 0.85;  // splitting, sums outside
  // What gathers issue weighs less where there is more to multiply.
  const bool more = fma || s.math == GemmMath::kTf32x3;
  if (s.vec_x == 1) share *= more ? 0.8 : 0.5;
  if (s.vec_w == 1) share *= more ? 0.9 : 0.8;
  return share;
}

double grid_seconds(const InceptionShape& s, const Work (&work)[2], const Device& device) {
  const DeviceRates rates = device_rates(device);
  const double full = s.math == GemmMath::kFma      ? rates.fma_flops
                      : s.math == GemmMath::kTf32   ? rates.tensor_tf32_flops
                      : s.math == GemmMath::kTf32x3 ? rates.tensor_tf32_flops / 3
                                                    : rates.tensor_16_flops;
  double total = 0, latency = 0, blocks = 0;
  for (const Work& w : work) {
    const double k_tiles = double(tiles(w.gemm_k, s.block_k * s.slices) + kOverheadTiles);
    blocks += double(w.blocks);
    total += double(w.blocks) * k_tiles * s.slices * w.tile;
    latency = std::max(latency, k_tiles * w.tile * kTileLatency_s);
  }
  const double rounds = std::ceil(blocks / device.sm_count);
  const double flops = 2.0 * s.block_m * s.block_n * s.block_k * total / blocks;
  return rates.launch_s +
         std::max(latency, rounds * flops * device.sm_count / (full * efficiency(s)));
}

}  // namespace

std::string inception_refusal(const InceptionShape& s, const InceptionCall& c) {
  const struct {
    const char* name;
    int64_t extent;
    bool pixels, weights;  // whose contiguous axis it is a multiple of
  } lengths[] = {{"C", c.C, true, true},
                 {"the 3x3's reduction's channels", c.R3, true, false},
                 {"the 5x5's reduction's channels", c.R5, true, false},
                 {"the 3x3's weights of a filter", c.R3 * c.extent3 * c.extent3, false, true},
                 {"the 5x5's weights of a filter", c.R5 * c.extent5 * c.extent5, false, true}};
  for (const auto& l : lengths) {
    const int vec = std::max(l.pixels ? s.vec_x : 1, l.weights ? s.vec_w : 1);
    if (l.extent % vec != 0)
      return std::string(l.name) + "=" + std::to_string(l.extent) + " is not a multiple of " +
             std::to_string(vec);
  }
  const struct {
    const char* name;
    const void* base;
    int vec;
  } bases[] = {{"input", c.x, s.vec_x},
               {"the reductions", c.reductions, s.vec_x},
               {"weight", c.joined, s.vec_w},
               {"the 3x3's weight", c.w3, s.vec_w},
               {"the 5x5's weight", c.w5, s.vec_w},
               {"the projection's weight", c.wp, s.vec_w}};
  for (const auto& b : bases)
    if (b.vec > 1 && reinterpret_cast<uintptr_t>(b.base) % 16 != 0)
      return std::string(b.name) + " is not aligned to 16 bytes";
  for (const int64_t extent : {c.extent3, c.extent5})
    if (extent * extent > kMaskTaps) return exceeds("a filter's size", extent * extent, kMaskTaps);
  // Offsets within the images that one tile of pixels touches, padding included, and within the
  // rows of one tile of weights, are 32-bit, in bytes.
  const int64_t pad = std::max(c.extent3, c.extent5) / 2;
  const int64_t most = std::max({c.C, c.R3 + c.R5, c.outputs()});
  const int64_t images = std::min(c.N, s.block_pixels() / (c.H * c.W) + 2);
  const int64_t longest =
      std::max({c.C, c.R3 * c.extent3 * c.extent3, c.R5 * c.extent5 * c.extent5});
  for (const auto& [what, elements] :
       {std::pair<const char*, double>{
            "the bytes of the images that one tile reads",
            double(images) * double(most) * double(c.H + 2 * pad) * double(c.W + 2 * pad)},
        {"the bytes of one tile's weights", double(longest) * s.block_channels()}})
    if (elements * s.scalar_bytes >= double(kIndexLimit))
      return exceeds(what, static_cast<int64_t>(std::min(elements * s.scalar_bytes, 9e18)),
                     kIndexLimit - 1);
  const int64_t blocks = std::max(blocks_of(s, c, joined_rows(c)) + blocks_of(s, c, c.KP),
                                  blocks_of(s, c, c.K3) + blocks_of(s, c, c.K5));
  if (blocks >= kIndexLimit) return exceeds("the number of tiles", blocks, kIndexLimit - 1);
  return {};
}

double inception_cost(const InceptionShape& s, const InceptionCall& c, const Device& device) {
  const Work pointwise[] = {{blocks_of(s, c, c.KP), c.C, kPoolTile},
                            {blocks_of(s, c, joined_rows(c)), c.C, 1}};
  const Work windows[] = {{blocks_of(s, c, c.K3), c.R3 * c.extent3 * c.extent3, 1},
                          {blocks_of(s, c, c.K5), c.R5 * c.extent5 * c.extent5, 1}};
  const double memory = element_bytes(s, c) / device_rates(device).bytes_per_s;
  return std::max(grid_seconds(s, pointwise, device) + grid_seconds(s, windows, device), memory);
}

InceptionGrids inception_grids(const InceptionShape& s, const InceptionCall& c) {
  const int64_t size = c.H * c.W;
  const auto divisor = [](int64_t d) { return FastDivmod(static_cast<uint32_t>(d)); };
  InceptionParams p{};
  p.pixels = c.pixels();
  p.rows = static_cast<int>(c.H);
  p.row_pixels = static_cast<int>(c.W);
  p.image = divisor(size);
  p.row = divisor(c.W);
  Epilogue epilogue;
  epilogue.activation = c.activation;
  epilogue.slope = c.slope;
  p.epilogue = store_epilogue<float>(epilogue);

  // Channels from `first` on of a tensor of `pitch`.
  const auto slice = [&](const void* base, int64_t first) {
    const int64_t elements = s.nhwc() ? first : first * size;
    return static_cast<unsigned char*>(const_cast<void*>(base)) + elements * s.scalar_bytes;
  };
  const auto target = [&](void* base, int64_t pitch, int64_t first) {
    return InceptionTarget{slice(base, first), static_cast<int>(pitch)};
  };
  const auto product = [&](const void* src, int64_t channels, int64_t pitch, const void* w,
                           const void* bias, int64_t filters, int64_t extent,
                           const InceptionTarget& first, int64_t split,
                           const InceptionTarget& second) {
    InceptionProduct g{};
    g.src = src;
    g.w = w;
    g.bias = bias;
    g.src_channels = static_cast<int>(channels);
    g.src_pitch = static_cast<int>(pitch);
    g.dst_channels = static_cast<int>(filters);
    g.extent = static_cast<int>(extent);
    g.split = static_cast<int>(split);
    g.first = first;
    g.second = second;
    g.vec4 = s.nhwc() ? filters % 4 == 0 && split % 4 == 0 : size % 4 == 0;
    for (const InceptionTarget& t : {first, second})
      g.vec4 = g.vec4 && reinterpret_cast<uintptr_t>(t.base) % (4 * s.scalar_bytes) == 0 &&
               (!s.nhwc() || t.pitch % 4 == 0);
    g.channel_tiles = divisor(tiles(filters, s.block_channels()));
    g.channels = divisor(channels);
    g.taps = divisor(extent * extent);
    g.tap_row = divisor(extent);
    return g;
  };
  const int64_t K = c.outputs(), R = c.R3 + c.R5;
  const auto branch = [&](const void* src, int64_t channels, int64_t pitch, const void* w,
                          const void* bias, int64_t filters, int64_t extent, int64_t place) {
    const InceptionTarget to = target(c.y, K, place);
    return product(src, channels, pitch, w, bias, filters, extent, to, filters, to);
  };

  InceptionGrids grids{p, p, 0, 0};
  grids.pointwise.product[0] = branch(c.x, c.C, c.C, c.wp, c.bp, c.KP, 1, c.K1 + c.K3 + c.K5);
  grids.pointwise.product[1] = product(c.x, c.C, c.C, c.joined, c.joined_bias, joined_rows(c), 1,
                                       target(c.y, K, 0), c.K1, target(c.reductions, R, 0));
  const int64_t projection = blocks_of(s, c, c.KP);
  grids.pointwise.product[1].first_block = static_cast<uint32_t>(projection);
  grids.pointwise_blocks = projection + blocks_of(s, c, joined_rows(c));

  const InceptionProduct three = branch(c.reductions, c.R3, R, c.w3, c.b3, c.K3, c.extent3, c.K1);
  const InceptionProduct five =
      branch(slice(c.reductions, c.R3), c.R5, R, c.w5, c.b5, c.K5, c.extent5, c.K1 + c.K3);
  const bool three_first = c.R3 * c.extent3 * c.extent3 >= c.R5 * c.extent5 * c.extent5;
  grids.windows.product[0] = three_first ? three : five;
  grids.windows.product[1] = three_first ? five : three;
  const int64_t longer = blocks_of(s, c, three_first ? c.K3 : c.K5);
  grids.windows.product[1].first_block = static_cast<uint32_t>(longer);
  grids.windows_blocks = longer + blocks_of(s, c, three_first ? c.K5 : c.K3);
  return grids;
}

namespace {

template <class Config>
std::string refusal(const InceptionCall& c) {
  return inception_refusal(Config::shape, c);
}
template <class Config>
double cost(const InceptionCall& c, const Device& device) {
  return inception_cost(Config::shape, c, device);
}

#define FC_INCEPTION_ROW(name, dtype, products, config) \
  {name,                                                \
   dtype,                                               \
   FC_INCEPTION_CONFIG(config)::shape.layout,           \
   products,                                            \
   refusal<FC_INCEPTION_CONFIG(config)>,                \
   cost<FC_INCEPTION_CONFIG(config)>,                   \
   launch_inception<FC_INCEPTION_CONFIG(config)>},

const InceptionInstance kInstances[] = {FC_INCEPTION_16(FC_INCEPTION_ROW) FC_INCEPTION_32(
    FC_INCEPTION_ROW) FC_INCEPTION_TF32X3(FC_INCEPTION_ROW)};

}  // namespace

InceptionInstanceList inception_instances() {
  return {kInstances, sizeof(kInstances) / sizeof(kInstances[0])};
}

const InceptionInstance* choose_inception_instance(const InceptionCall& call, Products products,
                                                   const std::string& name, const Device& device,
                                                   std::string* reason) {
  const Layout layout = call.channels_last ? Layout::kNHWC : Layout::kNCHW;
  const InceptionInstance* best = nullptr;
  double least = std::numeric_limits<double>::infinity();
  std::string why = "no kernel of that name for this dtype and layout";
  for (const InceptionInstance& instance : kInstances) {
    if (instance.dtype != call.dtype || instance.layout != layout || instance.products > products ||
        (!name.empty() && name != instance.name))
      continue;
    std::string refused = instance.applicable(call);
    if (!refused.empty()) {
      why = std::move(refused);
      continue;
    }
    const double seconds = instance.cost(call, device);
    if (best == nullptr || seconds < least) best = &instance, least = seconds;
  }
  if (best == nullptr && reason != nullptr) *reason = why;
  return best;
}

}  // namespace fastconv::cuda
