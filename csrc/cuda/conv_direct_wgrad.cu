// Launchers of the tiled direct weight gradient.
#include "conv_direct_wgrad_plan.h"
#include "conv_wgrad_direct.cuh"
#include "conv_wgrad_direct_reduce.cuh"

namespace fastconv::cuda {
namespace {

// Many filters; few per group.
template <WgradTileId id>
using TileOf = std::conditional_t<id == WgradTileId::kK32, WgradTile<8, 4, 2, 32, 1>,
                                  WgradTile<4, 1, 1, 16, 4>>;

template <class acc, class Tile>
constexpr WgradShape kShape = {Tile::BLOCK_K, Tile::template K_PITCH<acc>,
                               Tile::COLUMNS, Tile::SLICES,
                               Tile::THREADS, Tile::THREAD_K* Tile::THREAD_COLUMNS,
                               kPack<acc>,    static_cast<int>(sizeof(acc))};

template <DType dtype, Layout layout, WgradTileId id>
WgradPlan plan_of(const ConvProblem& p) {
  using acc = acc_t<scalar_of<dtype>>;
  return plan_wgrad(p, layout == Layout::kNHWC, kShape<acc, TileOf<id>>);
}

}  // namespace

template <DType dtype>
int launch_wgrad_reduce(const void* partial, void* dw, int64_t weights, int64_t slices,
                        void* stream) {
  using scalar_t = scalar_of<dtype>;
  // Blocks stride over what the grid leaves.
  const int64_t blocks = std::min(ceil_div(weights, 32), int64_t{1} << 20);
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kReduceThreads), 0, stream};
  return launch_kernel(conv_wgrad_direct_reduce_kernel<scalar_t>, config,
                       static_cast<const acc_t<scalar_t>*>(partial), static_cast<scalar_t*>(dw),
                       weights, slices);
}

template int launch_wgrad_reduce<DType::kFloat32>(const void*, void*, int64_t, int64_t, void*);
template int launch_wgrad_reduce<DType::kFloat64>(const void*, void*, int64_t, int64_t, void*);
template int launch_wgrad_reduce<DType::kBFloat16>(const void*, void*, int64_t, int64_t, void*);
template int launch_wgrad_reduce<DType::kFloat16>(const void*, void*, int64_t, int64_t, void*);

template <DType dtype, Layout layout, WgradTileId id>
std::string WgradInstance<dtype, layout, id>::applicable(const ConvProblem& p) {
  return plan_of<dtype, layout, id>(p).refusal;
}

template <DType dtype, Layout layout, WgradTileId id>
int64_t WgradInstance<dtype, layout, id>::workspace(const ConvProblem& p, const Device&) {
  return plan_of<dtype, layout, id>(p).workspace;
}

template <DType dtype, Layout layout, WgradTileId id>
double WgradInstance<dtype, layout, id>::cost(const ConvProblem& p, const Device& device) {
  using scalar_t = scalar_of<dtype>;
  using acc = acc_t<scalar_t>;
  const DeviceRates rates = device_rates(device);
  const WgradPlan plan = plan_of<dtype, layout, id>(p);
  const double multiply =
      plan.lane_instructions /
      (fma_rate(rates, sizeof(acc)) / 2 * filled_sms(plan.blocks * TileOf<id>::THREADS, device));
  const double move = tensor_bytes(p, sizeof(scalar_t)) / (kStreamShare * rates.bytes_per_s);
  // Partial sums are written and read once, then reduced by a second kernel.
  const double reduce =
      plan.chunks > 1 ? rates.launch_s + 2.0 * double(plan.workspace) / rates.bytes_per_s : 0;
  return rates.launch_s + std::max(multiply, move) + reduce;
}

template <DType dtype, Layout layout, WgradTileId id>
int WgradInstance<dtype, layout, id>::launch(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  using acc = acc_t<scalar_t>;
  using Tile = TileOf<id>;
  constexpr bool channels_last = layout == Layout::kNHWC;
  WgradPlan plan = plan_of<dtype, layout, id>(call.problem);
  if (!plan.refusal.empty()) return cudaErrorInvalidValue;
  const scalar_t* const x = static_cast<const scalar_t*>(call.x);
  const scalar_t* const dy = static_cast<const scalar_t*>(call.y);
  scalar_t* const dw = static_cast<scalar_t*>(call.w);
  acc* const partial = plan.chunks > 1 ? static_cast<acc*>(call.workspace) : nullptr;
  plan.params.x_box.vector_loads = channels_last && plan.params.channels % kPack<acc> == 0 &&
                                   aligned_to(x, kPack<acc> * sizeof(scalar_t));
  plan.params.dy_box.vector_loads = channels_last && plan.params.filters % kPack<acc> == 0 &&
                                    aligned_to(dy, kPack<acc> * sizeof(scalar_t));
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(Tile::THREADS),
                            static_cast<size_t>(plan.shared_bytes), call.stream};
  const int error = launch_kernel(conv_wgrad_direct_kernel<scalar_t, channels_last, Tile>, config,
                                  plan.params, x, dy, partial, dw);
  if (error != 0 || partial == nullptr) return error;
  return launch_wgrad_reduce<dtype>(partial, dw, plan.params.weights, plan.chunks, call.stream);
}

#define WGRAD_TILE(dtype, tile)                              \
  template struct WgradInstance<dtype, Layout::kNCHW, tile>; \
  template struct WgradInstance<dtype, Layout::kNHWC, tile>;

WGRAD_TILE(DType::kFloat32, WgradTileId::kK32)
WGRAD_TILE(DType::kFloat32, WgradTileId::kK4)
WGRAD_TILE(DType::kFloat64, WgradTileId::kK32)
WGRAD_TILE(DType::kFloat64, WgradTileId::kK4)
WGRAD_TILE(DType::kBFloat16, WgradTileId::kK32)
WGRAD_TILE(DType::kBFloat16, WgradTileId::kK4)
WGRAD_TILE(DType::kFloat16, WgradTileId::kK32)
WGRAD_TILE(DType::kFloat16, WgradTileId::kK4)

}  // namespace fastconv::cuda
