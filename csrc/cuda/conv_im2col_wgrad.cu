// Launchers of im2col's wgrad.
#include "conv_im2col.h"
#include "conv_wgrad_im2col.cuh"
#include "wgrad_reduce.h"

namespace fastconv::cuda {
namespace {

ConvWgradParams wgrad_params(const Im2colShape& s, const ConvCall& call) {
  const ConvProblem& c = call.problem;
  const Im2colSplit split = im2col_split(s, c, call.device);
  ConvWgradParams p{};
  p.x = call.x;
  p.dy = call.y;
  p.out = split.splits > 1 ? call.workspace : call.w;
  p.pixels = c.N * c.out_size();
  p.channels = static_cast<int>(c.channels_per_group());
  p.filters = static_cast<int>(c.filters_per_group());
  p.groups = static_cast<int>(c.groups);
  for (int axis = 0; axis < 3; ++axis) {
    p.in[axis] = static_cast<int>(c.in[axis]);
    p.filter[axis] = static_cast<int>(c.filter[axis]);
    p.out_extent[axis] = static_cast<int>(c.out[axis]);
    p.stride[axis] = static_cast<int>(c.stride[axis]);
    p.padding[axis] = static_cast<int>(c.padding[axis]);
    p.dilation[axis] = static_cast<int>(c.dilation[axis]);
  }
  p.splits = static_cast<int>(split.splits);
  p.split_count = FastDivmod(static_cast<uint32_t>(split.splits));
  p.split_tiles = split.split_tiles;
  const int64_t gemm_n = c.channels_per_group() * c.filter_size();
  const int out_bytes = split.splits > 1 ? 4 : s.scalar_bytes;
  p.vec4 = reinterpret_cast<uintptr_t>(p.out) % (4 * out_bytes) == 0 && gemm_n % 4 == 0;
  const auto divisor = [](int64_t d) { return FastDivmod(static_cast<uint32_t>(d)); };
  p.image = divisor(c.out_size());
  p.plane = divisor(c.out[1] * c.out[2]);
  p.row = divisor(c.out[2]);
  p.inner = divisor(s.nhwc() ? c.channels_per_group() : c.filter_size());
  p.tap_plane = divisor(c.filter[1] * c.filter[2]);
  p.tap_row = divisor(c.filter[2]);
  return p;
}

template <class Config>
int launch_tiles(const ConvCall& call, ConvWgradParams p) {
  using Tile = typename Config::Tile;
  const int gemm_n = p.channels * static_cast<int>(call.problem.filter_size());
  p.m_tiles = FastDivmod((p.filters + Tile::BLOCK_M - 1) / Tile::BLOCK_M);
  p.n_tiles = FastDivmod((gemm_n + Tile::BLOCK_N - 1) / Tile::BLOCK_N);
  const int64_t blocks = int64_t{p.groups} * p.splits * p.m_tiles.divisor * p.n_tiles.divisor;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::NUM_THREADS),
                            gemm_shared_bytes<Tile>(), call.stream};
  constexpr bool nhwc = Config::shape.layout == Layout::kNHWC;
  return launch_kernel(conv_wgrad_im2col_kernel<Tile, nhwc, Config::VEC_DATA, Config::VEC_OTHER>,
                       config, p);
}

}  // namespace

template <class Config>
int launch_conv_im2col(const ConvCall& call) {
  using Tile = typename Config::Tile;
  using scalar_t = typename Tile::scalar_t;
  // The number of splits, and with it the workspace, is the shape's own also where the bases'
  // alignment makes another configuration do the work.
  const ConvWgradParams p = wgrad_params(Config::shape, call);
  int error;
  if constexpr (std::is_void_v<typename Config::Fallback>)
    error = launch_tiles<Config>(call, p);
  else
    error = im2col_aligned(Config::shape, call) ? launch_tiles<Config>(call, p)
                                                : launch_tiles<typename Config::Fallback>(call, p);
  return error != 0 || p.splits == 1 ? error : launch_wgrad_reduce<scalar_t>(call, p.splits);
}

template <class scalar_t>
int launch_wgrad_reduce(const ConvCall& call, int splits) {
  const int64_t weights =
      call.problem.K * call.problem.channels_per_group() * call.problem.filter_size();
  const int64_t blocks = (weights + kWgradReduceThreads - 1) / kWgradReduceThreads;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20)),
                            dim3(kWgradReduceThreads), 0, call.stream};
  return launch_kernel(conv_wgrad_im2col_reduce_kernel<scalar_t>, config,
                       static_cast<const float*>(call.workspace), static_cast<scalar_t*>(call.w),
                       weights, splits);
}
template int launch_wgrad_reduce<float>(const ConvCall&, int);
template int launch_wgrad_reduce<__half>(const ConvCall&, int);
template int launch_wgrad_reduce<__nv_bfloat16>(const ConvCall&, int);

FC_IM2COL_INSTANCES(FC_IM2COL_INSTANTIATE, Direction::kWgrad, "wgrad")

}  // namespace fastconv::cuda
