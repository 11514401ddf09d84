// Launchers of the tiled direct kernels of fprop and dgrad.
#include "conv_direct_gather_plan.h"
#include "conv_gather_direct.cuh"

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

template <class acc, class Tile>
constexpr GatherShape kShape = {Tile::BLOCK_K, Tile::BLOCK_PIX, Tile::K_PITCH, kPack<acc>,
                                static_cast<int>(sizeof(acc))};

bool aligned_to(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
std::string GatherInstance<dtype, layout, id, direction>::applicable(const ConvProblem& p) {
  using acc = acc_t<typename DTypeTraits<dtype>::scalar_t>;
  using Tile = typename TileOf<id, acc>::type;
  return plan_gather(p, direction, layout == Layout::kNHWC, kShape<acc, Tile>).refusal;
}

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
double GatherInstance<dtype, layout, id, direction>::cost(const ConvProblem& p,
                                                          const Device& device) {
  using scalar_t = typename DTypeTraits<dtype>::scalar_t;
  using acc = acc_t<scalar_t>;
  using Tile = typename TileOf<id, acc>::type;
  const DeviceRates rates = device_rates(device);
  const GatherPlan plan = plan_gather(p, direction, layout == Layout::kNHWC, kShape<acc, Tile>);
  // An SM needs about three blocks of 128 threads to keep its FMA pipe busy.
  const double filled =
      std::min(1.0, double(plan.blocks) * Tile::THREADS / (device.sm_count * 384.0));
  const double multiply = plan.lane_instructions / (fma_rate<acc>(rates) / 2 * filled);
  const double move = tensor_bytes(p, sizeof(scalar_t)) / rates.bytes_per_s;
  return rates.launch_s + std::max(multiply, move);
}

template <DType dtype, Layout layout, GatherTileId id, Direction direction>
int GatherInstance<dtype, layout, id, direction>::launch(const ConvCall& call) {
  using scalar_t = typename DTypeTraits<dtype>::scalar_t;
  using acc = acc_t<scalar_t>;
  using Tile = typename TileOf<id, acc>::type;
  constexpr bool channels_last = layout == Layout::kNHWC, fprop = direction == Direction::kFprop;
  GatherPlan plan = plan_gather(call.problem, direction, channels_last, kShape<acc, Tile>);
  if (!plan.refusal.empty()) return cudaErrorInvalidValue;
  const scalar_t* const in = static_cast<const scalar_t*>(fprop ? call.x : call.y);
  scalar_t* const out = static_cast<scalar_t*>(fprop ? call.y : call.x);
  const scalar_t* const bias = fprop ? static_cast<const scalar_t*>(call.bias) : nullptr;
  plan.params.box.vector_loads = channels_last && plan.params.channels % kPack<acc> == 0 &&
                                 aligned_to(in, kPack<acc> * sizeof(scalar_t));
  plan.params.vector_stores =
      channels_last && plan.params.filters % Tile::THREAD_K == 0 &&
      aligned_to(out, std::min<size_t>(16, Tile::THREAD_K * sizeof(scalar_t)));
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(Tile::THREADS),
                            static_cast<size_t>(plan.shared_bytes), call.stream};
  return launch_kernel(conv_gather_direct_kernel<scalar_t, channels_last, Tile>, config,
                       plan.params, in, static_cast<const scalar_t*>(call.w), bias, out);
}

#define GATHER_TILES(dtype, layout, direction)                                  \
  template struct GatherInstance<dtype, layout, GatherTileId::kK32, direction>; \
  template struct GatherInstance<dtype, layout, GatherTileId::kK64, direction>; \
  template struct GatherInstance<dtype, layout, GatherTileId::kK4, direction>;
#define GATHER_DTYPE(dtype)                             \
  GATHER_TILES(dtype, Layout::kNCHW, Direction::kFprop) \
  GATHER_TILES(dtype, Layout::kNCHW, Direction::kDgrad) \
  GATHER_TILES(dtype, Layout::kNHWC, Direction::kFprop) \
  GATHER_TILES(dtype, Layout::kNHWC, Direction::kDgrad)

GATHER_DTYPE(DType::kFloat32)
GATHER_DTYPE(DType::kFloat64)
GATHER_DTYPE(DType::kBFloat16)
GATHER_DTYPE(DType::kFloat16)

}  // namespace fastconv::cuda
