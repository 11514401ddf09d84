// Launchers of the wgrad by TMA and wgmma: its limits, the cut of the pixels, its costs.
#include "conv_tma_wgrad.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "conv_tma.h"
#include "conv_wgrad_tma.cuh"
#include "device_rates.h"
#include "tensor_map.h"
#include "wgrad_reduce.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kPixels = 64;          // of a stage
constexpr int64_t kLeastSplitTiles = 8;  // of a range, in stages
constexpr int64_t kMostWaves = 6;        // items per SM, where the tiles of dw alone are fewer
constexpr int64_t kMostPartialBytes = int64_t{128} << 20;

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

// x is read as fprop reads it, 64 pixels of dy at a time.
TmaShape reading(const TmaWgradShape& s) {
  return {Direction::kFprop, s.dtype, 2, static_cast<int>(kPixels), 64, 64};
}

int64_t weight_elements(const ConvProblem& p) { return p.K * p.C * p.filter_size(); }
int64_t units(const ConvProblem& p) { return p.filter_size() * tiles(p.C, 64); }

// Seconds of all launches with the pixels cut in `splits`.
double seconds(const TmaWgradShape& s, const ConvProblem& p, const DeviceRates& rates,
               const Device& device, const TmaWgradSplit& cut) {
  const int64_t sm_count = device.sm_count;
  const double items = double(cut.items());
  const double rounds = double(tiles(cut.items(), sm_count));
  const double stage_s = 2.0 * s.block_m * s.block_n * kPixels * double(sm_count) /
                         (rates.warpgroup_16_flops * kWarpgroupShare);
  const double epilogue = warpgroup_store_s(double(s.block_m) * s.block_n / 2, rates, device);
  const double multiply = rounds * (double(cut.split_tiles) * stage_s + epilogue);
  const double l2_bytes = items * double(cut.split_tiles) * 128.0 * (s.block_m + s.block_n);
  const double elements = double(p.N) * double(p.C) * double(p.in_size()) +
                          double(weight_elements(p)) +
                          double(p.N) * double(p.K) * double(p.out_size());
  // An SM has its share of L2's rate whether others run or not.
  const double l2 = l2_bytes / rates.l2_bytes_per_s * rounds * double(sm_count) / items;
  const double memory = std::max(2 * elements / rates.bytes_per_s, l2);
  const double partial = 8.0 * double(cut.splits) * double(weight_elements(p));
  return rates.launch_s + std::max(multiply, memory) +
         (cut.splits > 1 ? rates.launch_s + partial / rates.bytes_per_s : 0);
}

}  // namespace

TmaWgradSplit tma_wgrad_split(const TmaWgradShape& s, const ConvProblem& p, const Device& device) {
  TmaWgradSplit best{tiles(p.K, s.block_m), tiles(units(p), s.block_n / 64),
                     tiles(p.N * p.out_size(), kPixels), 1, 0};
  best.split_tiles = best.k_tiles;
  const DeviceRates rates = device_rates({90, device.sm_count});
  const int64_t most = std::max<int64_t>(
      std::min(best.k_tiles / kLeastSplitTiles, kMostPartialBytes / (4 * weight_elements(p))), 1);
  double least = std::numeric_limits<double>::infinity();
  TmaWgradSplit cut = best;
  for (int64_t quarter = 0; quarter <= 4 * kMostWaves; ++quarter) {
    const int64_t n =
        std::clamp<int64_t>(quarter * device.sm_count / (4 * cut.m_tiles * cut.n_tiles), 1, most);
    cut.split_tiles = tiles(cut.k_tiles, n);
    cut.splits = tiles(cut.k_tiles, cut.split_tiles);
    const double s_cut = seconds(s, p, rates, device, cut);
    if (s_cut < least) least = s_cut, best = cut;
  }
  return best;
}

std::string tma_wgrad_refusal(const TmaWgradShape& s, const ConvProblem& p) {
  std::string why = tma_refusal(reading(s), p);
  if (!why.empty()) return why;
  if (p.K % 8 != 0) return "K=" + std::to_string(p.K) + " is not a multiple of 8";
  constexpr int64_t kLimit = int64_t{1} << 30;
  const int64_t most =
      tiles(p.K, s.block_m) * tiles(units(p), s.block_n / 64) + kMostPartialBytes / 4;
  if (most >= kLimit)
    return "the number of tiles is " + std::to_string(most) + ", the kernel's limit is " +
           std::to_string(kLimit - 1);
  return {};
}

// Room for the fallback, too: what the bases' alignment is nobody knows yet.
int64_t tma_wgrad_workspace(const TmaWgradShape& s, const ConvProblem& p, const Device& device) {
  const int64_t splits = tma_wgrad_split(s, p, device).splits;
  const int64_t fallback = im2col_workspace(
      TmaWgradConfig<DType::kFloat16, __half, 128, 128, 4>::Fallback::shape, p, device);
  return std::max(splits > 1 ? splits * weight_elements(p) * 4 : 0, fallback);
}

double tma_wgrad_cost(const TmaWgradShape& s, const ConvProblem& p, const Device& device) {
  return seconds(s, p, device_rates(device), device, tma_wgrad_split(s, p, device));
}

namespace {

int wgrad_params(const TmaWgradShape& s, const ConvCall& call, const TmaWgradSplit& cut,
                 ConvWgradTmaParams* params) {
  const ConvProblem& c = call.problem;
  ConvTmaParams read;
  int error = tma_params(reading(s), call, &read);
  if (error != cudaSuccess) return error;
  ConvWgradTmaParams& p = *params;
  p = ConvWgradTmaParams{};
  p.x = read.src;
  const auto extent = [](int64_t e) { return static_cast<uint64_t>(e); };
  const int64_t pixels = c.N * c.out_size();
  // [1, N O P Q, K].
  const TensorAxes dy{call.y,
                      s.dtype,
                      3,
                      {extent(c.K), extent(pixels), 1},
                      {2, 2 * extent(c.K), 2 * extent(c.K) * extent(pixels)}};
  const uint32_t box[3] = {64, static_cast<uint32_t>(kPixels), 1};
  error = encode_tile_map(&p.dy, dy, box);
  if (error != cudaSuccess) return error;
  p.out = cut.splits > 1 ? call.workspace : call.w;
  p.weights = weight_elements(c);
  p.pitch = c.C * c.filter_size();
  p.filters = static_cast<int>(c.K);
  p.channels = static_cast<int>(c.C);
  p.splits = static_cast<int>(cut.splits);
  p.volume = read.volume;
  for (int axis = 0; axis < 3; ++axis) {
    p.stride[axis] = read.stride[axis];
    p.first[axis] = read.first[axis];
    p.dilation[axis] = read.dilation[axis];
  }
  p.image = read.image;
  p.plane = read.plane;
  p.row = read.row;
  const auto divisor = [](int64_t d) { return FastDivmod(static_cast<uint32_t>(d)); };
  p.chunks = divisor(tiles(c.C, 64));
  p.tap_plane = divisor(c.filter[1] * c.filter[2]);
  p.tap_row = divisor(c.filter[2]);
  p.units = static_cast<int>(units(c));
  p.k_tiles = static_cast<int>(cut.k_tiles);
  p.split_tiles = static_cast<int>(cut.split_tiles);
  p.items = static_cast<int>(cut.items());
  p.m_tiles = divisor(cut.m_tiles);
  p.n_tiles = divisor(cut.n_tiles);
  return cudaSuccess;
}

bool aligned(const ConvCall& call) {
  const auto multiple = [](const void* base) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0;
  };
  return multiple(call.x) && multiple(call.y) && multiple(call.w);
}

}  // namespace

template <class Config>
int launch_conv_tma_wgrad(const ConvCall& call) {
  constexpr TmaWgradShape shape = Config::shape;
  using scalar_t = typename Config::scalar_t;
  using Tile = ConvWgradTmaTile<scalar_t, shape.block_m, shape.block_n, Config::NUM_STAGES>;
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!aligned(call)) return launch_conv_im2col<typename Config::Fallback>(call);
  const TmaWgradSplit cut = tma_wgrad_split(shape, call.problem, call.device);
  ConvWgradTmaParams p;
  if (const int error = wgrad_params(shape, call, cut, &p)) return error;
  const int blocks = std::min(p.items, call.device.sm_count);
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            Tile::SHARED_BYTES, call.stream};
  const int error = launch_kernel(conv_wgrad_tma_kernel<Tile>, config, p);
  return error != 0 || p.splits == 1 ? error : launch_wgrad_reduce<scalar_t>(call, p.splits);
}

#define FC_TMA_WGRAD_INSTANTIATE(name, dtype, ...) \
  template int launch_conv_tma_wgrad<TmaWgradConfig<dtype, __VA_ARGS__>>(const ConvCall&);
FC_TMA_WGRAD_INSTANCES(FC_TMA_WGRAD_INSTANTIATE)

}  // namespace fastconv::cuda
