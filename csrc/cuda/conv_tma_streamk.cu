// Launchers of tma's convolutions whose clusters share tiles.
#include "conv_tma_streamk.h"

#include <mutex>

namespace fastconv::cuda {
namespace {

constexpr int kFlags = 8;  // of a block: a warp each

// Another one for each launch: 2^64 of them, in an order that looks like nothing that tensors hold.
uint64_t launch_number() {
  static std::mutex mutex;
  static uint64_t count = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  uint64_t v = ++count * 0x9E3779B97F4A7C15u;
  v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9u;
  v = (v ^ v >> 27) * 0x94D049BB133111EBu;
  return v ^ v >> 31;
}

int64_t sums_bytes(const TmaShape& s, const TmaStream& stream) {
  return 4 * stream.clusters * s.cluster() * s.block_m * s.block_n;
}

}  // namespace

int64_t tma_left_bytes(const TmaShape& s, const ConvProblem& p, const Device& device) {
  const TmaStream stream = tma_stream(s, p, device);
  if (stream.rest == 0) return 0;
  return sums_bytes(s, stream) +
         static_cast<int64_t>(sizeof(uint64_t)) * stream.clusters * s.cluster() * kFlags;
}

template <class Config>
int launch_conv_tma_streamk(const ConvCall& call) {
  using Tile = typename Config::Tile;
  constexpr TmaShape kShape = Config::shape;
  static_assert(Tile::CONSUMER_WARPS == kFlags);
  if (call.device.capability != 90) return cudaErrorNoKernelImageForDevice;
  if (!tma_aligned(kShape, call)) return launch_conv_im2col<typename Config::Fallback>(call);
  ConvTmaParams p;
  if (const int error = tma_params(kShape, call, &p)) return error;
  const TmaStream stream = tma_stream(kShape, call.problem, call.device);
  ConvTmaStream::Params shares;
  shares.left = static_cast<float4*>(call.workspace);
  shares.flags = reinterpret_cast<uint64_t*>(static_cast<char*>(call.workspace) +
                                             (stream.rest == 0 ? 0 : sums_bytes(kShape, stream)));
  shares.number = launch_number();
  shares.whole = static_cast<int>(stream.whole);
  shares.share = static_cast<int>(stream.share);
  shares.extra = static_cast<int>(stream.longer);
  shares.k_tiles = FastDivmod(static_cast<uint32_t>(stream.k_tiles));
  const LaunchConfig config{dim3(static_cast<unsigned>(stream.clusters * kShape.cluster())),
                            dim3(Tile::NUM_THREADS), Tile::SHARED_BYTES, call.stream};
  const auto kernel = [] {
    if constexpr (Config::shape.direction == Direction::kFprop)
      return conv_fprop_tma_streamk_kernel<Tile>;
    else
      return conv_dgrad_tma_streamk_kernel<Tile>;
  }();
  return launch_with_moments(
      call, kShape.direction, moment_tiles<Tile>(call.problem),
      [&](const MomentTiles<float>& moments) {
        p.moments = moments;
        return launch_in_order(kernel, config, kShape.cluster(), p, shares);
      },
      tma_left_bytes(kShape, call.problem, call.device));
}

#define FC_TMA_STREAMK_INSTANTIATE(name, ...) \
  template int launch_conv_tma_streamk<__VA_ARGS__>(const ConvCall&);
FC_TMA_STREAMK(FC_TMA_STREAMK_INSTANTIATE)

}  // namespace fastconv::cuda
