// Launchers of the tiled direct kernels of fprop and dgrad.
#include "conv_direct_gather_plan.h"
#include "conv_gather_direct.cuh"
#include "conv_moments.h"

namespace fastconv::cuda {
namespace {

// Wide filters and images; filters with small images; few filters per group. fp64 holds half the
// pixels per thread.
template <GatherTileId id, class acc>
struct TileOf;
template <class acc>
struct TileOf<GatherTileId::kK32, acc> {
  using type = GatherTile<8, kPack<acc> * 2, 4, 32>;
};
template <class acc>
struct TileOf<GatherTileId::kK64, acc> {
  using type = GatherTile<8, kPack<acc>, 8, 16>;
};
template <class acc>
struct TileOf<GatherTileId::kK4, acc> {
  using type = GatherTile<4, kPack<acc>, 1, 64>;
};

// A tap's multiply-adds among its instructions, and a fifth off for latency and the barriers.
template <class acc, class Tile>
constexpr double multiply_share() {
  constexpr double multiply = Tile::THREAD_K * Tile::THREAD_PIX * kPack<acc>;
  return 0.8 * multiply / (multiply + 2 * Tile::THREAD_PIX + Tile::THREAD_K + 12);
}

template <class acc, class Tile>
constexpr GatherShape kShape = {Tile::THREADS,
                                Tile::BLOCK_K,
                                Tile::BLOCK_PIX,
                                Tile::K_PITCH,
                                kPack<acc>,
                                static_cast<int>(sizeof(acc)),
                                multiply_share<acc, Tile>()};

double gather_cost(const ConvProblem& p, const Device& device, Direction direction,
                   bool channels_last, const GatherShape& shape, int64_t scalar_bytes) {
  const DeviceRates rates = device_rates(device);
  const GatherPlan plan = plan_gather(p, direction, channels_last, shape);
  const double multiply =
      plan.lane_instructions /
      (fma_rate(rates, shape.acc_bytes) / 2 * filled_sms(plan.blocks * shape.threads, device));
  return rates.launch_s +
         std::max(multiply, tensor_bytes(p, scalar_bytes) / (kStreamShare * rates.bytes_per_s));
}

int64_t moment_tiles(const ConvProblem& p, const GatherPlan& plan) {
  return p.N * gather_image_tiles(plan.params);
}

template <class scalar_t, bool channels_last, class Tile>
int launch_gather(const ConvCall& call, Direction direction) {
  using acc = acc_t<scalar_t>;
  const bool fprop = direction == Direction::kFprop;
  GatherPlan plan = plan_gather(call.problem, direction, channels_last, kShape<acc, Tile>);
  if (!plan.refusal.empty()) return cudaErrorInvalidValue;
  const scalar_t* const in = static_cast<const scalar_t*>(fprop ? call.x : call.y);
  scalar_t* const out = static_cast<scalar_t*>(fprop ? call.y : call.x);
  const scalar_t* const bias = fprop ? static_cast<const scalar_t*>(call.bias) : nullptr;
  plan.params.box.vector_loads = channels_last && plan.params.channels % kPack<acc> == 0 &&
                                 aligned_to(in, kPack<acc> * sizeof(scalar_t));
  constexpr size_t vector_bytes = std::min<size_t>(16, Tile::THREAD_K * sizeof(scalar_t));
  const bool vectors = channels_last && plan.params.filters % Tile::THREAD_K == 0;
  plan.params.vector_stores = vectors && aligned_to(out, vector_bytes);
  StoreEpilogue<acc> epilogue{};
  if (fprop) {
    epilogue = store_epilogue<acc>(call.epilogue);
    plan.params.vector_residual = vectors && aligned_to(epilogue.residual, vector_bytes);
    const DenseTensor residual = dense_y(call.problem, channels_last);
    plan.params.residual_stride_n = residual.stride[0];
    plan.params.residual_stride_d = residual.stride[2];
    plan.params.residual_stride_h = residual.stride[3];
    plan.params.residual_stride_w = residual.stride[4];
    const DenseTensor y = sliced_y(call.problem, call.y_channels(), channels_last);
    plan.params.out_stride_n = y.stride[0];
    plan.params.out_stride_d = y.stride[2];
    plan.params.out_stride_h = y.stride[3];
    plan.params.out_stride_w = y.stride[4];
    plan.params.vector_stores &= call.y_channels() * sizeof(scalar_t) % vector_bytes == 0;
  }
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(Tile::THREADS),
                            static_cast<size_t>(plan.shared_bytes), call.stream};
  return launch_with_moments<acc>(
      call, direction, moment_tiles(call.problem, plan), [&](const MomentTiles<acc>& moments) {
        return launch_kernel(conv_gather_direct_kernel<scalar_t, channels_last, Tile>, config,
                             plan.params, in, static_cast<const scalar_t*>(call.w), bias, epilogue,
                             moments, out);
      });
}

template <DType dtype, GatherTileId id>
using GatherTileOf = typename TileOf<id, acc_t<scalar_of<dtype>>>::type;

template <DType dtype, GatherTileId id>
constexpr GatherShape kShapeOf = kShape<acc_t<scalar_of<dtype>>, GatherTileOf<dtype, id>>;

}  // namespace

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
std::string GatherInstance<dtype, layout, id, direction>::applicable(const ConvProblem& p) {
  return plan_gather(p, direction, layout == Layout::kNHWC, kShapeOf<dtype, id>).refusal;
}

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
double GatherInstance<dtype, layout, id, direction>::cost(const ConvProblem& p,
                                                          const Device& device) {
  return gather_cost(p, device, direction, layout == Layout::kNHWC, kShapeOf<dtype, id>,
                     sizeof(scalar_of<dtype>));
}

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
int64_t GatherInstance<dtype, layout, id, direction>::stats_workspace(const ConvProblem& p,
                                                                      const Device&) {
  const GatherPlan plan = plan_gather(p, direction, layout == Layout::kNHWC, kShapeOf<dtype, id>);
  return moments_bytes<acc_t<scalar_of<dtype>>>(p.K, moment_tiles(p, plan));
}

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
int GatherInstance<dtype, layout, id, direction>::launch(const ConvCall& call) {
  return launch_gather < scalar_of<dtype>, layout == Layout::kNHWC, GatherTileOf < dtype,
         id >> (call, direction);
}

#define GATHER_TILE(dtype, tile)                                                 \
  template struct GatherInstance<dtype, Layout::kNCHW, tile, Direction::kFprop>; \
  template struct GatherInstance<dtype, Layout::kNCHW, tile, Direction::kDgrad>; \
  template struct GatherInstance<dtype, Layout::kNHWC, tile, Direction::kFprop>; \
  template struct GatherInstance<dtype, Layout::kNHWC, tile, Direction::kDgrad>;

GATHER_TILE(DType::kFloat32, GatherTileId::kK32)
GATHER_TILE(DType::kFloat32, GatherTileId::kK64)
GATHER_TILE(DType::kFloat32, GatherTileId::kK4)
GATHER_TILE(DType::kFloat64, GatherTileId::kK32)
GATHER_TILE(DType::kFloat64, GatherTileId::kK4)
GATHER_TILE(DType::kBFloat16, GatherTileId::kK32)
GATHER_TILE(DType::kBFloat16, GatherTileId::kK64)
GATHER_TILE(DType::kBFloat16, GatherTileId::kK4)
GATHER_TILE(DType::kFloat16, GatherTileId::kK32)
GATHER_TILE(DType::kFloat16, GatherTileId::kK64)
GATHER_TILE(DType::kFloat16, GatherTileId::kK4)

}  // namespace fastconv::cuda
