// Launchers of the NCHW depthwise kernels of compile-time filter size.
#include "conv_depthwise.h"
#include "conv_dgrad_depthwise_nchw.cuh"
#include "conv_fprop_depthwise_nchw.cuh"
#include "conv_wgrad_depthwise_nchw.cuh"

namespace fastconv::cuda::depthwise {
namespace {

// A block's box: a dozen of them fit into an SM's shared memory.
constexpr int64_t kBoxBytes = 16 * 1024;
constexpr int64_t kMaxPlanes = 64;  // whose filters are staged beside it
constexpr int64_t kItems = 256;     // threads' walks that a block should have

struct PlanesPlan {
  DepthwisePlanes g;
  int height, threads;
  int64_t blocks, shared_bytes;
};

// Inputs that `count` neighbouring outputs read along one axis.
int64_t inputs_of(int64_t count, int r, int stride, bool gathered) {
  return gathered ? count / 2 + 2 + (r - 1) / 2 : (count - 1) * stride + r;
}

template <class scalar_t>
PlanesPlan plan_planes(const ConvProblem& p, bool dgrad, int r, int stride) {
  PlanesPlan plan;
  DepthwisePlanes& g = plan.g;
  const int64_t(&in)[3] = dgrad ? p.out : p.in;
  const int64_t(&out)[3] = dgrad ? p.in : p.out;
  const bool gathered = dgrad && stride == 2;
  const int64_t across = gathered ? 1 : kPlaneColumns<scalar_t>;  // columns of a thread
  g.mirrored = dgrad && stride == 1;
  g.C = static_cast<int>(p.C);
  g.plane_count = p.N * p.C;
  g.in_h = static_cast<int>(in[1]), g.in_w = static_cast<int>(in[2]);
  g.pad_h = static_cast<int>(g.mirrored ? r - 1 - p.padding[1] : p.padding[1]);
  g.pad_w = static_cast<int>(g.mirrored ? r - 1 - p.padding[2] : p.padding[2]);
  plan.height = static_cast<int>(out[1]);
  // Strided dgrad walks down pairs of rows.
  const int64_t rows = gathered ? ceil_div(out[1] + (g.pad_h & 1), 2) : out[1];
  g.out_h = static_cast<int>(rows);
  g.out_w = static_cast<int>(out[2]);
  // Of `count` rows of the walk; one row of dy per pair in strided dgrad.
  const auto in_rows = [&](int64_t count) {
    return gathered ? count + (r - 1) / 2 : (count - 1) * stride + r;
  };

  const int64_t budget = kBoxBytes / int64_t{sizeof(scalar_t)}, size = in[1] * in[2];
  g.walk = static_cast<int>(ceil_div(rows, ceil_div(rows, gathered ? 6 : 8)));
  int64_t tile_rows = rows, tile_columns = out[2], planes = 1;
  if (size <= budget) {
    const int64_t items = ceil_div(out[2], across) * ceil_div(rows, g.walk);
    planes = std::min({budget / size, ceil_div(kItems, items), kMaxPlanes, g.plane_count});
  } else {
    if (in_rows(std::min<int64_t>(g.walk, rows)) * in[2] > budget) {
      const int64_t columns = budget / in_rows(g.walk) - kPiece<scalar_t>;
      while (tile_columns > 1 && inputs_of(tile_columns, r, stride, gathered) > columns)
        tile_columns = ceil_div(tile_columns, 2);
    }
    const int64_t width = tile_columns == out[2]
                              ? in[2]
                              : inputs_of(tile_columns, r, stride, gathered) + kPiece<scalar_t>;
    tile_rows = g.walk;
    while (tile_rows + g.walk <= rows && in_rows(tile_rows + g.walk) * width <= budget &&
           ceil_div(tile_columns, across) * tile_rows < kItems * g.walk)
      tile_rows += g.walk;
  }
  g.planes = static_cast<int>(planes);
  g.tile_rows = static_cast<int>(tile_rows);
  g.tile_columns = static_cast<int>(tile_columns);
  const int64_t row_tiles = ceil_div(rows, tile_rows);
  const int64_t column_tiles = ceil_div(out[2], tile_columns);
  const int64_t width = column_tiles == 1 ? in[2] : inputs_of(tile_columns, r, stride, gathered);
  g.row_pitch = congruent_pitch<scalar_t>(in[2], static_cast<int>(width));
  g.plane_pitch = planes == 1 ? 0 : static_cast<int>(size);
  g.row_tiles = FastDivmod(static_cast<uint32_t>(row_tiles));
  g.column_tiles = FastDivmod(static_cast<uint32_t>(column_tiles));
  g.walks = FastDivmod(static_cast<uint32_t>(ceil_div(tile_rows, g.walk)));
  g.columns = FastDivmod(static_cast<uint32_t>(ceil_div(tile_columns, across)));
  const int64_t items = planes * ceil_div(tile_columns, across) * ceil_div(tile_rows, g.walk);
  plan.threads =
      static_cast<int>(std::min<int64_t>(kDepthwisePlaneThreads, ceil_div(items, 32) * 32));
  plan.blocks = ceil_div(g.plane_count, planes) * row_tiles * column_tiles;
  const int64_t box_rows = std::min(in_rows(tile_rows), in[1]);
  const int64_t filters = ceil_div(planes * (r * r + 1), 4) * 16;
  plan.shared_bytes =
      filters + box_elements<scalar_t>(planes, box_rows, g.row_pitch, g.plane_pitch) *
                    int64_t{sizeof(scalar_t)};
  return plan;
}

// Tiles of all planes of a channel.
int64_t channel_tiles(const ConvProblem& p, const PlanesPlan& plan) {
  return p.N * plan.g.row_tiles.divisor * plan.g.column_tiles.divisor;
}

DepthwiseSlicedPlanes sliced(const DepthwisePlanes& g, const ConvCall& call, bool dgrad) {
  DepthwiseSlicedPlanes s{};
  static_cast<DepthwisePlanes&>(s) = g;
  if (dgrad) return s;
  const int64_t image = call.problem.K * call.problem.out_size();
  const int64_t whole = call.y_channels() * call.problem.out_size();
  s.skipped = whole - image;
  s.by_columns = FastDivmod(static_cast<uint32_t>(g.tile_columns));
  s.by_image = FastDivmod64(static_cast<uint64_t>(image));
  s.by_sliced_image = FastDivmod64(static_cast<uint64_t>(whole));
  return s;
}

struct PlanesWgradPlan {
  DepthwiseWgradPlanes g;
  int threads;
  int64_t blocks, splits, shared_bytes;
};

constexpr int64_t kWgradThreads = 128;
constexpr int64_t kWgradBytes = 20 * 1024;  // of x and dy in one step

template <class scalar_t>
PlanesWgradPlan plan_planes_wgrad(const ConvProblem& p, int r, int stride, const Device& device) {
  PlanesWgradPlan plan;
  DepthwiseWgradPlanes& g = plan.g;
  const int64_t in_h = p.in[1], in_w = p.in[2], out_h = p.out[1], out_w = p.out[2];
  g.N = static_cast<int>(p.N), g.C = static_cast<int>(p.C);
  g.in_h = static_cast<int>(in_h), g.in_w = static_cast<int>(in_w);
  g.out_h = static_cast<int>(out_h), g.out_w = static_cast<int>(out_w);
  g.pad_h = static_cast<int>(p.padding[1]), g.pad_w = static_cast<int>(p.padding[2]);

  const int64_t budget = kWgradBytes / int64_t{sizeof(scalar_t)};
  const int64_t column_tiles = ceil_div(out_w, kWgradThreads);
  const int64_t tile_columns = ceil_div(out_w, column_tiles);
  const int64_t slots = kWgradThreads / tile_columns;
  const int64_t x_width = column_tiles == 1 ? in_w : (tile_columns - 1) * stride + r;
  g.x_row_pitch = congruent_pitch<scalar_t>(in_w, static_cast<int>(x_width));
  g.dy_row_pitch = congruent_pitch<scalar_t>(out_w, static_cast<int>(tile_columns));
  const auto x_rows = [&](int64_t rows) { return std::min((rows - 1) * stride + r, in_h); };
  const auto elements = [&](int64_t rows) {
    return x_rows(rows) * g.x_row_pitch + rows * g.dy_row_pitch + 4 * kPiece<scalar_t>;
  };
  int64_t tile_rows = out_h, images = 1;
  while (tile_rows > 1 && elements(tile_rows) > budget) tile_rows = ceil_div(tile_rows, 2);
  g.walk = static_cast<int>(ceil_div(tile_rows, ceil_div(tile_rows, 16)));
  const int64_t walks = ceil_div(tile_rows, g.walk);
  if (tile_rows == out_h)
    images = clamp(budget / elements(out_h), 1, std::min(p.N, 2 * ceil_div(slots, walks)));
  const int64_t strips = ceil_div(out_h, tile_rows);
  g.images = static_cast<int>(images);
  g.tile_rows = static_cast<int>(tile_rows);
  g.tile_columns = static_cast<int>(tile_columns);
  g.slots = static_cast<int>(slots);
  g.x_image_pitch = congruent_pitch<scalar_t>(p.C * p.in_size(),
                                              static_cast<int>(x_rows(tile_rows) * g.x_row_pitch));
  g.dy_image_pitch =
      congruent_pitch<scalar_t>(p.C * p.out_size(), static_cast<int>(tile_rows * g.dy_row_pitch));
  const int64_t piece = kPiece<scalar_t>;
  g.x_elements = static_cast<int>(
      ceil_div(box_elements<scalar_t>(images, x_rows(tile_rows), g.x_row_pitch, g.x_image_pitch),
               piece) *
      piece);
  const int64_t dy_elements =
      box_elements<scalar_t>(images, tile_rows, g.dy_row_pitch, g.dy_image_pitch);

  const int64_t steps = strips * ceil_div(p.N, images);
  g.steps = static_cast<int>(steps);
  // About two waves of eight blocks per SM.
  const int64_t wanted = ceil_div(int64_t{device.sm_count} * 16, p.C * column_tiles);
  g.range = static_cast<int>(ceil_div(steps, std::min(wanted, steps)));
  const int64_t ranges = ceil_div(steps, g.range);
  g.channels = FastDivmod(static_cast<uint32_t>(p.C));
  g.column_tiles = FastDivmod(static_cast<uint32_t>(column_tiles));
  g.strips = FastDivmod(static_cast<uint32_t>(strips));
  g.walks = FastDivmod(static_cast<uint32_t>(walks));
  g.columns = FastDivmod(static_cast<uint32_t>(tile_columns));
  plan.threads = static_cast<int>(ceil_div(tile_columns * slots, 32) * 32);
  plan.splits = ranges * column_tiles;
  plan.blocks = plan.splits * p.C;
  plan.shared_bytes = std::max((g.x_elements + dy_elements) * int64_t{sizeof(scalar_t)},
                               int64_t{plan.threads / 32} * (r * r) * 4);
  return plan;
}

}  // namespace

template <DType dtype, int R, int STRIDE>
int64_t planes_wgrad_workspace(const ConvProblem& p, const Device& device) {
  return plan_planes_wgrad<scalar_of<dtype>>(p, R, STRIDE, device).splits * p.C * (R * R) * 4;
}

template <DType dtype, int R, int STRIDE>
int64_t planes_stats_workspace(const ConvProblem& p, const Device&) {
  return moments_bytes(p.K, channel_tiles(p, plan_planes<scalar_of<dtype>>(p, false, R, STRIDE)));
}

template <DType dtype, Direction direction, int R, int STRIDE>
int launch_planes(const ConvCall& call) {
  using scalar_t = scalar_of<dtype>;
  const ConvProblem& p = call.problem;
  scalar_t* const x = static_cast<scalar_t*>(call.x);
  scalar_t* const y = static_cast<scalar_t*>(call.y);
  const scalar_t* const w = static_cast<const scalar_t*>(call.w);
  const scalar_t* const bias = static_cast<const scalar_t*>(call.bias);
  if constexpr (direction == Direction::kWgrad) {
    const PlanesWgradPlan plan = plan_planes_wgrad<scalar_t>(p, R, STRIDE, call.device);
    const int error =
        launch_kernel(conv_wgrad_depthwise_nchw_kernel<scalar_t, R, STRIDE>,
                      config_for(plan.blocks, dim3(static_cast<unsigned>(plan.threads)),
                                 plan.shared_bytes, call.stream),
                      plan.g, static_cast<const scalar_t*>(x), static_cast<const scalar_t*>(y),
                      static_cast<float*>(call.workspace));
    return error != 0 ? error : launch_wgrad_sum<dtype>(call, plan.splits);
  } else {
    constexpr bool dgrad = direction == Direction::kDgrad;
    const PlanesPlan plan = plan_planes<scalar_t>(p, dgrad, R, STRIDE);
    const LaunchConfig config = config_for(plan.blocks, dim3(static_cast<unsigned>(plan.threads)),
                                           plan.shared_bytes, call.stream);
    if constexpr (dgrad && STRIDE == 2)
      return launch_kernel(conv_dgrad_depthwise_nchw_kernel<scalar_t, R>, config, plan.g,
                           plan.height, static_cast<const scalar_t*>(y), w, x);
    else
      return launch_either<!dgrad>(
          call, channel_tiles(p, plan), [&](auto stats, const MomentTiles<float>& moments) {
            return launch_kernel(
                conv_fprop_depthwise_nchw_kernel<scalar_t, R, STRIDE, decltype(stats)::value>,
                config, sliced(plan.g, call, dgrad), static_cast<const scalar_t*>(dgrad ? y : x), w,
                dgrad ? static_cast<const scalar_t*>(nullptr) : bias,
                dgrad ? StoreEpilogue<float>{} : store_epilogue<float>(call.epilogue), moments,
                dgrad ? x : y);
          });
  }
}

#define FC_PLANES(dtype, r, stride)                                                             \
  template int launch_planes<dtype, Direction::kFprop, r, stride>(const ConvCall&);             \
  template int launch_planes<dtype, Direction::kDgrad, r, stride>(const ConvCall&);             \
  template int launch_planes<dtype, Direction::kWgrad, r, stride>(const ConvCall&);             \
  template int64_t planes_wgrad_workspace<dtype, r, stride>(const ConvProblem&, const Device&); \
  template int64_t planes_stats_workspace<dtype, r, stride>(const ConvProblem&, const Device&);
#define FC_ALL_PLANES(dtype) \
  FC_PLANES(dtype, 3, 1)     \
  FC_PLANES(dtype, 3, 2)     \
  FC_PLANES(dtype, 5, 1) FC_PLANES(dtype, 5, 2) FC_PLANES(dtype, 7, 1) FC_PLANES(dtype, 7, 2)
FC_ALL_PLANES(DType::kFloat32)
FC_ALL_PLANES(DType::kBFloat16)
FC_ALL_PLANES(DType::kFloat16)

}  // namespace fastconv::cuda::depthwise
