// What the Winograd kernels apply to, and the tables of winograd_f2x2_3x3 and winograd_f4x4_3x3.
#include "conv_winograd.h"

#include <string>

#include "conv_moments.h"
#include "conv_winograd_cost.h"

namespace fastconv::cuda {
namespace {

using namespace winograd;

std::string axis_pair(const int64_t (&a)[3]) {
  return std::to_string(a[1]) + "x" + std::to_string(a[2]);
}

// Of all directions, so that a layer that runs forward also runs backward.
template <int kTileOut>
std::string applicable(const ConvProblem& p) {
  if (p.rank != 2) return "Winograd needs rank 2, got rank " + std::to_string(p.rank);
  if (p.filter[1] != 3 || p.filter[2] != 3)
    return "Winograd needs a 3x3 filter, got " + axis_pair(p.filter);
  if (p.stride[1] != 1 || p.stride[2] != 1)
    return "Winograd needs stride 1, got " + axis_pair(p.stride);
  if (p.dilation[1] != 1 || p.dilation[2] != 1)
    return "Winograd needs dilation 1, got " + axis_pair(p.dilation);
  // 32-bit arithmetic: bytes within a tile of up to 6 rows, tiles, padding, blocks.
  const int64_t row = std::max(p.in[2] * p.C, p.out[2] * p.K), most = int64_t{1} << 26;
  if (row > most)
    return "Winograd needs rows of at most 2^26 elements over all channels, got " +
           std::to_string(row);
  const int64_t height = std::max(p.in[1], p.out[1]);
  if (height > most || p.padding[1] > most || p.padding[2] > most)
    return "Winograd needs a height and padding of at most 2^26, got " + std::to_string(height) +
           " and " + axis_pair(p.padding);
  const int64_t tiles =
      p.N * std::max(blocks_of(p.out[1], kTileOut) * blocks_of(p.out[2], kTileOut),
                     blocks_of(p.in[1], kTileOut) * blocks_of(p.in[2], kTileOut));
  if (tiles >= (int64_t{1} << 31) - 64)
    return "Winograd needs fewer than 2^31 - 64 tiles, got " + std::to_string(tiles);
  return "";
}

template <int kTileOut>
std::string nonfused_applicable(const ConvProblem& p) {
  const std::string reason = applicable<kTileOut>(p);
  if (!reason.empty()) return reason;
  const int64_t C = p.channels_per_group(), K = p.filters_per_group();
  const std::string got = std::to_string(C) + " and " + std::to_string(K);
  // A matrix product per group and point, in blocks of 128 x 64.
  if (p.groups > 1 && std::min(C, K) < 8)
    return "non-fused Winograd needs at least 8 channels and filters per group, got " + got;
  // 32-bit numbers of a matrix's elements, over all groups, for 256 tiles and for one tap.
  if (std::max(p.C, p.K) > int64_t{1} << 22 || p.groups * C * K > int64_t{1} << 30)
    return "non-fused Winograd needs at most 2^22 channels and filters and 2^30 weights per tap, "
           "got " +
           std::to_string(p.C) + ", " + std::to_string(p.K) + " and " +
           std::to_string(p.groups * C * K);
  return "";
}

template <int kTileOut>
using WinogradOf = std::conditional_t<kTileOut == 4, WinogradF4x4_3x3, WinogradF2x2_3x3>;

// What the table says of TF32: fp32 tensors whose transformed tiles are rounded to it. 16-bit
// storage gains nothing from strict fp32 products and has no other kernels.
template <class scalar_t, bool kTensorCores>
constexpr Products kProducts =
    kTensorCores && std::is_same_v<scalar_t, float> ? Products::kTf32 : Products::kIeee;

template <int kTileOut, class scalar_t, DType dtype, bool kTensorCores, Layout layout,
          Direction direction>
struct Fused {
  static int64_t workspace(const ConvProblem& p, const Device&) {
    const Plan plan = make_plan(p, direction, layout, kTileOut, sizeof(scalar_t));
    if (direction == Direction::kWgrad) return splits_of(plan, kTileOut).bytes;
    const Slabs slabs = slabs_of(plan, kTileOut);
    return slabs.at_a_time * slabs.bytes;
  }
  static int64_t stats_workspace(const ConvProblem& p, const Device& device) {
    const Plan plan = make_plan(p, direction, layout, kTileOut, sizeof(scalar_t));
    return moments_begin(workspace(p, device)) + moments_bytes(p.K, moment_tiles(plan));
  }
  static double cost(const ConvProblem& p, const Device& device) {
    return fused_cost(p, direction, sizeof(scalar_t), kTileOut, kTensorCores, device);
  }
  static int launch(const ConvCall& call) {
    using Wino = WinogradOf<kTileOut>;
    if constexpr (direction == Direction::kWgrad)
      return launch_wgrad_fused<Wino, scalar_t, layout, kTensorCores>(call);
    else
      return launch_fused<Wino, scalar_t, layout, kTensorCores>(call, direction);
  }
  static constexpr ConvInstance instance(const char* name) {
    return {name,
            direction,
            dtype,
            layout,
            kProducts<scalar_t, kTensorCores>,
            applicable<kTileOut>,
            workspace,
            cost,
            launch,
            direction == Direction::kFprop ? stats_workspace : nullptr};
  }
};

template <int kTileOut, class scalar_t, DType dtype, bool kTensorCores, Layout layout,
          Direction direction>
struct NonFused {
  static int64_t workspace(const ConvProblem& p, const Device&) {
    const Plan plan = make_plan(p, direction, layout, kTileOut, sizeof(scalar_t));
    return matrices_of(plan, direction, kTileOut).bytes();
  }
  static int64_t stats_workspace(const ConvProblem& p, const Device& device) {
    const Plan plan = make_plan(p, direction, layout, kTileOut, sizeof(scalar_t));
    return moments_begin(workspace(p, device)) +
           moments_bytes(p.K, nonfused_moment_tiles(plan, layout));
  }
  static double cost(const ConvProblem& p, const Device& device) {
    return nonfused_cost(p, direction, sizeof(scalar_t), kTileOut, kTensorCores, device);
  }
  static int launch(const ConvCall& call) {
    return launch_nonfused<WinogradOf<kTileOut>, scalar_t, layout, kTensorCores>(call, direction);
  }
  static constexpr ConvInstance instance(const char* name) {
    return {name,
            direction,
            dtype,
            layout,
            kProducts<scalar_t, kTensorCores>,
            nonfused_applicable<kTileOut>,
            workspace,
            cost,
            launch,
            direction == Direction::kFprop ? stats_workspace : nullptr};
  }
};

// clang-format off
#define FC_WINOGRAD_ROW(Mechanism, d, dn, l, ln, scalar_t, dtype, names, engine, tensor_cores) \
  Mechanism<kTileOut, scalar_t, dtype, tensor_cores, Layout::l, Direction::d>::instance(       \
      dn "_" names "_" ln "_" engine)
#define FC_WINOGRAD_ROWS(Mechanism, ...)                              \
  FC_WINOGRAD_ROW(Mechanism, kFprop, "fprop", kNCHW, "nchw", __VA_ARGS__), \
  FC_WINOGRAD_ROW(Mechanism, kFprop, "fprop", kNHWC, "nhwc", __VA_ARGS__), \
  FC_WINOGRAD_ROW(Mechanism, kDgrad, "dgrad", kNCHW, "nchw", __VA_ARGS__), \
  FC_WINOGRAD_ROW(Mechanism, kDgrad, "dgrad", kNHWC, "nhwc", __VA_ARGS__), \
  FC_WINOGRAD_ROW(Mechanism, kWgrad, "wgrad", kNCHW, "nchw", __VA_ARGS__), \
  FC_WINOGRAD_ROW(Mechanism, kWgrad, "wgrad", kNHWC, "nhwc", __VA_ARGS__)
#define FC_WINOGRAD_TABLE(Mechanism, name)                                                   \
  FC_WINOGRAD_ROWS(Mechanism, float, DType::kFloat32, "f32", name "_fma", false),            \
  FC_WINOGRAD_ROWS(Mechanism, float, DType::kFloat32, "f32", name "_tf32", true),            \
  FC_WINOGRAD_ROWS(Mechanism, __nv_bfloat16, DType::kBFloat16, "bf16", name "_tf32", true),  \
  FC_WINOGRAD_ROWS(Mechanism, __half, DType::kFloat16, "f16", name "_tf32", true)

template <int kTileOut>
struct Table {
  static constexpr ConvInstance kInstances[] = {
      FC_WINOGRAD_TABLE(Fused, "fused"),
      FC_WINOGRAD_TABLE(NonFused, "nonfused"),
  };
  static constexpr int kSize = sizeof(kInstances) / sizeof(kInstances[0]);
};
// clang-format on

}  // namespace

extern const ConvAlgorithm conv_winograd_f2x2_3x3{"winograd_f2x2_3x3", Table<2>::kInstances,
                                                  Table<2>::kSize};
extern const ConvAlgorithm conv_winograd_f4x4_3x3{"winograd_f4x4_3x3", Table<4>::kInstances,
                                                  Table<4>::kSize};

}  // namespace fastconv::cuda
