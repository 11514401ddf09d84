// Launchers of the non-fused Winograd convolution: transforms to and from matrices in the workspace
// (conv_transform_winograd.cuh) around one batched matrix product per chunk of tiles.
//
// For each group and point of the tile, with V of the input and U of the filters (wgrad: of dy):
//   fprop, dgrad, NCHW:  M [K, tiles] = U [K, C] V [C, tiles]
//   fprop, dgrad, NHWC:  M [tiles, K] = V [tiles, C] U [C, K]
//   wgrad, NCHW:         M [K, C] = U [K, tiles] V^T,  V stored [C, tiles]
//   wgrad, NHWC:         M [K, C] = U^T V [tiles, C],  U stored [tiles, K]
//
// Against the fused kernels: every tile is transformed once, not once per 32 filters, and the
// product has larger blocks; but V and M pass through memory. So it is for many channels and
// filters.
//
// Bytes, over x and y themselves: V and M written and read once, 2 * 4 * n*n / m^2 (C + K) per
// output pixel with n = m + 2, which is 32 (C + K) for F(2x2) and 18 (C + K) for F(4x4); U once.
// FLOPs of the products: 2 n*n / m^2 C K per output pixel, which is 8 C K and 4.5 C K where direct
// convolution has 18 C K. FLOPs per byte: C K / (4 (C + K)) for either tile, 32 at C = K = 256. By
// the rates of device_rates.h memory is the bound up to C = K = 134 on the FMA pipe (17 FLOPs per
// byte of DRAM on sm_90), up to 343 on tensor cores (43).
//
// 16-bit dtypes keep V, U and M in fp32 and multiply in TF32: rounded to bf16, V would cost F(4x4)
// several percent of the largest output, and in fp16 it could overflow. Deterministic: the order of
// every sum, also wgrad's over splits and chunks of tiles, follows from the problem alone.
// Not measured on a GPU. Source: Lavin and Gray 2015, arXiv:1509.09308, section 4, algorithm 1.
#include <type_traits>

#include "conv_moments.h"
#include "conv_transform_winograd.cuh"
#include "conv_winograd.h"
#include "detail/gemm_batched.cuh"

namespace fastconv::cuda::winograd {
namespace {

template <bool kTensorCores>
using ProductTile =
    std::conditional_t<kTensorCores, GemmTile<float, GemmMath::kTf32, 128, 64, 32, 32, 4, 2>,
                       GemmTile<float, GemmMath::kFma, 128, 64, 32, 64, 4, 3>>;

template <bool kTensorCores, bool kAContiguous, bool kBContiguous>
int multiply(const float* a, const float* b, float* c, const Matrices& s, int64_t m, int64_t n,
             int64_t k, int64_t splits, void* stream) {
  const GemmBatchedParams p = gemm_batched_params<kAContiguous, kBContiguous>(
      a, b, c, s.count, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k),
      static_cast<int>(splits));
  return launch_gemm_batched<ProductTile<kTensorCores>, float, kAContiguous, kBContiguous, 4, 4>(
      p, stream);
}

WinogradMatrices layout_of(int64_t groups, int64_t slow, int64_t fast, bool channels_fast) {
  return {FastDivmod(static_cast<uint32_t>(fast)), FastDivmod(static_cast<uint32_t>(slow)),
          static_cast<uint32_t>(groups * slow * fast), channels_fast};
}

LaunchConfig config_for(uint32_t elements, void* stream) {
  return {dim3(static_cast<unsigned>(blocks_of(elements, kWinogradTransformThreads))),
          dim3(kWinogradTransformThreads), 0, stream};
}

template <class Transform, class scalar_t>
int transform(const WinogradTransformParams& p, const void* from, float* to, void* stream) {
  return launch_kernel(conv_transform_winograd_kernel<Transform, scalar_t>,
                       config_for(p.to.elements, stream), p, static_cast<const scalar_t*>(from),
                       to);
}

// Filters as images of 3x3 pixels: one tile each, k for the image.
template <class Wino, class scalar_t>
int transform_filters(const Plan& plan, const Matrices& s, Layout layout, const void* w, float* u,
                      void* stream) {
  const int64_t bytes = sizeof(scalar_t);
  const bool nhwc = layout == Layout::kNHWC;
  WinogradTransformParams p{};
  p.images = {plan.filter_k * bytes,
              plan.filter_c * bytes,
              static_cast<int32_t>(plan.filter_r * bytes),
              static_cast<int32_t>(plan.filter_s * bytes),
              3,
              3};
  p.group_bytes = plan.filter_g * bytes;
  p.tiling = {static_cast<uint32_t>(plan.K), FastDivmod(1), FastDivmod(1)};
  p.to = nhwc ? layout_of(plan.groups, s.C, s.K, false) : layout_of(plan.groups, s.K, s.C, true);
  p.tiles = static_cast<int32_t>(plan.K);
  p.channels = static_cast<int32_t>(plan.C);
  return transform<WinogradFilter<Wino>, scalar_t>(
      p, static_cast<const scalar_t*>(w) + plan.filter_begin, u, stream);
}

WinogradTransformParams tensor_params(const Plan& plan, const Matrices& s, Layout layout, bool in,
                                      int tile_out, int64_t first_tile) {
  const bool nhwc = layout == Layout::kNHWC;
  const int64_t channels = in ? plan.C : plan.K, padded = in ? s.C : s.K;
  const WinogradImages& images = in ? plan.in : plan.out;
  WinogradTransformParams p{};
  p.images = images;
  p.group_bytes = channels * images.stride_c;
  p.tiling = tiling_of(plan);
  p.to = nhwc ? layout_of(plan.groups, s.tiles, padded, true)
              : layout_of(plan.groups, padded, s.tiles, false);
  p.step = tile_out;
  p.pad_h = in ? static_cast<int32_t>(plan.pad_h) : 0;
  p.pad_w = in ? static_cast<int32_t>(plan.pad_w) : 0;
  p.first_tile = static_cast<uint32_t>(first_tile);
  p.tiles = static_cast<int32_t>(std::min(s.tiles, plan.tiles - first_tile));
  p.channels = static_cast<int32_t>(channels);
  return p;
}

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_chunks(const ConvCall& call, Direction direction, const Plan& plan, const Matrices& s,
                  const MomentTiles<float>& moments) {
  constexpr bool kNhwc = layout == Layout::kNHWC;
  const bool dgrad = direction == Direction::kDgrad;
  float* const u = static_cast<float*>(call.workspace);
  float *const v = u + s.u, *const m = v + s.v;
  int error = transform_filters<Wino, scalar_t>(plan, s, layout, call.w, u, call.stream);
  for (int64_t first = 0; error == 0 && first < plan.tiles; first += s.tiles) {
    const WinogradTransformParams in = tensor_params(plan, s, layout, true, Wino::kOut, first);
    error = transform<WinogradInput<Wino>, scalar_t>(in, dgrad ? call.y : call.x, v, call.stream);
    if (error != 0) return error;
    error =
        kNhwc ? multiply<kTensorCores, true, false>(v, u, m, s, s.tiles, s.K, s.C, 1, call.stream)
              : multiply<kTensorCores, true, false>(u, v, m, s, s.K, s.tiles, s.C, 1, call.stream);
    if (error != 0) return error;
    const WinogradTransformParams out = tensor_params(plan, s, layout, false, Wino::kOut, first);
    WinogradOutputParams p{out.images,     out.group_bytes, out.tiling,  out.to,
                           out.first_tile, out.tiles,       out.channels};
    if (!dgrad) set_epilogue(call, layout, sizeof(scalar_t), p.images, p.epilogue, p.residual);
    LaunchConfig config = config_for(p.from.elements, call.stream);
    if (moments.to != nullptr) {
      const int64_t tile_blocks = blocks_of(out.tiles, int64_t{winograd_moment_tiles(kNhwc)});
      const int64_t channel_blocks = blocks_of(plan.K, int64_t{winograd_moment_channels(kNhwc)});
      p.moments = moments;
      p.tile_blocks = FastDivmod(static_cast<uint32_t>(tile_blocks));
      p.channel_blocks = FastDivmod(static_cast<uint32_t>(channel_blocks));
      config.grid = dim3(static_cast<unsigned>(plan.groups * channel_blocks * tile_blocks));
    }
    const auto kernel = moments.to != nullptr ? conv_output_winograd_kernel<Wino, scalar_t, true>
                                              : conv_output_winograd_kernel<Wino, scalar_t, false>;
    error = launch_kernel(kernel, config, p, static_cast<const float*>(m),
                          static_cast<const scalar_t*>(dgrad ? nullptr : call.bias),
                          static_cast<scalar_t*>(dgrad ? call.x : call.y));
  }
  return error;
}

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_data(const ConvCall& call, Direction direction) {
  const Plan plan = make_plan(call.problem, direction, layout, Wino::kOut, sizeof(scalar_t));
  const Matrices s = matrices_of(plan, direction, Wino::kOut);
  return launch_with_moments(
      call, direction, nonfused_moment_tiles(plan, layout),
      [&](const MomentTiles<float>& moments) {
        return launch_chunks<Wino, scalar_t, layout, kTensorCores>(call, direction, plan, s,
                                                                   moments);
      },
      s.bytes());
}

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_wgrad(const ConvCall& call) {
  constexpr bool kNhwc = layout == Layout::kNHWC;
  const Plan plan =
      make_plan(call.problem, Direction::kWgrad, layout, Wino::kOut, sizeof(scalar_t));
  const Matrices s = matrices_of(plan, Direction::kWgrad, Wino::kOut);
  float* const u = static_cast<float*>(call.workspace);
  float *const v = u + s.u, *const m = v + s.v, *const total = m + s.m;
  int error = 0;
  for (int64_t first = 0; error == 0 && first < plan.tiles; first += s.tiles) {
    error = transform<WinogradInput<Wino>, scalar_t>(
        tensor_params(plan, s, layout, true, Wino::kOut, first), call.x, v, call.stream);
    if (error != 0) return error;
    error = transform<WinogradWgradFilter<Wino>, scalar_t>(
        tensor_params(plan, s, layout, false, Wino::kOut, first), call.y, u, call.stream);
    if (error != 0) return error;
    error = multiply<kTensorCores, !kNhwc, !kNhwc>(u, v, m, s, s.K, s.C, s.tiles, s.splits,
                                                   call.stream);
    if (error != 0) return error;
    const WinogradWgradOutputParams p{layout_of(plan.groups, s.K, s.C, true),
                                      static_cast<int32_t>(plan.K),
                                      static_cast<int32_t>(plan.C),
                                      static_cast<int32_t>(s.splits),
                                      s.count * s.K * s.C,
                                      first == 0,
                                      first + s.tiles >= plan.tiles,
                                      plan.groups * plan.K * plan.C,
                                      plan.filter_g,
                                      plan.filter_k,
                                      plan.filter_c,
                                      plan.filter_r,
                                      plan.filter_s};
    error = launch_kernel(conv_wgrad_winograd_output_kernel<Wino, scalar_t>,
                          config_for(p.from.elements, call.stream), p, static_cast<const float*>(m),
                          total, static_cast<scalar_t*>(call.w));
  }
  return error;
}

}  // namespace

int64_t nonfused_moment_tiles(const Plan& plan, Layout layout) {
  return blocks_of(plan.tiles, int64_t{winograd_moment_tiles(layout == Layout::kNHWC)});
}

template <class Wino, class scalar_t, Layout layout, bool kTensorCores>
int launch_nonfused(const ConvCall& call, Direction direction) {
  if (direction == Direction::kWgrad)
    return launch_wgrad<Wino, scalar_t, layout, kTensorCores>(call);
  return launch_data<Wino, scalar_t, layout, kTensorCores>(call, direction);
}

FC_WINOGRAD_INSTANTIATE(launch_nonfused, WinogradF2x2_3x3, const ConvCall&, Direction)
FC_WINOGRAD_INSTANTIATE(launch_nonfused, WinogradF4x4_3x3, const ConvCall&, Direction)

}  // namespace fastconv::cuda::winograd
