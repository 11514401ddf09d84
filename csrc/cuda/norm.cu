// Launchers of the passes of batch normalisation with activation.
#include <algorithm>
#include <cstdint>

#include "dtype_scalar.h"
#include "norm_dgrad.cuh"
#include "norm_fprop.cuh"
#include "norm_launch.h"
#include "norm_merge_tiles.cuh"
#include "norm_stats.cuh"
#include "norm_sums.cuh"

namespace fastconv::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kMaxBlocks = INT32_MAX;
// Vectors of a thread: of a chunk of a plane, of a range of pixels.
constexpr int64_t kChunkVectors = 8, kThreadPixels = 4;
// Of a reduction, where there is work for as many: twice what a large GPU holds. Of the problem
// alone, so that the bits are the same on every device.
constexpr int64_t kReductionBlocks = 1056;

bool reduces(NormPass pass) { return pass == NormPass::kStats || pass == NormPass::kSums; }

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

// How a pass is cut; `vector` elements to a thread at a time.
struct NormPlan {
  int lanes, splits;
  int64_t blocks;
  int64_t chunk, units, split_units;  // planes
  int64_t groups, block_pixels;       // channels
};

NormPlan plan_norm(NormPass pass, const NormCall& c, int64_t vector) {
  NormPlan plan{};
  const bool reduction = reduces(pass);
  plan.splits = 1;
  if (c.channels_last) {
    const int64_t vectors = ceil_div(c.K, vector), pixels = c.N * c.size;
    plan.lanes = 1;
    while (plan.lanes < 32 && plan.lanes < vectors) plan.lanes *= 2;
    plan.groups = ceil_div(vectors, plan.lanes);
    const int64_t slots = kNormThreads / plan.lanes;
    plan.block_pixels = slots * kThreadPixels;
    if (reduction)
      plan.block_pixels = std::max(plan.block_pixels * 4,
                                   ceil_div(pixels, ceil_div(kReductionBlocks, plan.groups)));
    else
      plan.block_pixels = std::max(plan.block_pixels, ceil_div(pixels, kMaxBlocks / plan.groups));
    plan.splits = static_cast<int>(ceil_div(pixels, plan.block_pixels));
    plan.blocks = plan.groups * plan.splits;
    return plan;
  }
  plan.lanes = 8;
  while (plan.lanes < kNormThreads && plan.lanes * vector < c.size) plan.lanes *= 2;
  plan.chunk = kNormThreads * vector * kChunkVectors;
  const int64_t chunks = ceil_div(c.size, plan.chunk), groups = kNormThreads / plan.lanes;
  if (reduction) {
    plan.units = c.N * chunks;
    const int64_t wanted = std::min(ceil_div(kReductionBlocks, c.K), ceil_div(plan.units, groups));
    plan.split_units = ceil_div(plan.units, wanted);
    plan.splits = static_cast<int>(ceil_div(plan.units, plan.split_units));
    plan.blocks = c.K * plan.splits;
  } else {
    plan.units = c.N * c.K * chunks;
    plan.blocks = ceil_div(plan.units, groups);
  }
  return plan;
}

template <class scalar_t>
NormArguments<scalar_t> arguments_of(const NormCall& c, const NormPlan& plan) {
  using A = acc_t<scalar_t>;
  NormArguments<scalar_t> a{};
  a.y = static_cast<const scalar_t*>(c.y);
  a.dz = static_cast<const scalar_t*>(c.dz);
  a.mean = static_cast<const A*>(c.mean);
  a.rstd = static_cast<const A*>(c.rstd);
  a.weight = static_cast<const A*>(c.weight);
  a.bias = static_cast<const A*>(c.bias);
  a.sum_g = static_cast<const A*>(c.sum_g);
  a.sum_gy = static_cast<const A*>(c.sum_gy);
  a.epilogue = store_epilogue<A>(c.epilogue);
  a.inverse_count = c.count > 0 ? static_cast<A>(1 / c.count) : A(0);
  a.z = static_cast<scalar_t*>(c.z);
  a.dy = static_cast<scalar_t*>(c.dy);
  a.dresidual = static_cast<scalar_t*>(c.dresidual);
  a.partial = static_cast<A*>(c.workspace);
  const int64_t more = c.epilogue.y_channels > 0 ? c.epilogue.y_channels - c.K : 0;
  a.skipped = more * (c.channels_last ? 1 : c.size);
  a.K = static_cast<int>(c.K);
  a.lanes = plan.lanes;
  a.splits = plan.splits;
  a.vectors = aligned({c.y, c.dz, c.epilogue.residual, c.z, c.dy, c.dresidual}) &&
              a.skipped % kNormVector<scalar_t> == 0;
  a.size = c.size;
  a.units = plan.units;
  a.split_units = plan.split_units;
  a.pixels = c.N * c.size;
  a.block_pixels = plan.block_pixels;
  if (c.channels_last) {
    a.by_groups = FastDivmod(static_cast<uint32_t>(plan.groups));
  } else {
    a.chunk = static_cast<int>(plan.chunk);
    a.by_chunks = FastDivmod64(static_cast<uint64_t>(ceil_div(c.size, plan.chunk)));
    a.by_K = FastDivmod64(static_cast<uint64_t>(c.K));
  }
  return a;
}

template <class scalar_t>
int launch_merge(NormPass pass, const NormCall& c, int splits, void* stream) {
  using A = acc_t<scalar_t>;
  const bool stats = pass == NormPass::kStats;
  constexpr int64_t warps = kNormMergeThreads / 32;
  const LaunchConfig config{dim3(static_cast<unsigned>(ceil_div(c.K, warps))),
                            dim3(kNormMergeThreads), 0, stream};
  const A* const partial = static_cast<const A*>(c.workspace);
  A* const first = static_cast<A*>(stats ? c.out_mean : c.out_sum_g);
  A* const second = static_cast<A*>(stats ? c.out_m2 : c.out_sum_gy);
  const int channels = static_cast<int>(c.K);
  if (stats)
    return launch_kernel(norm_merge_kernel<true, A>, config, partial, channels, splits, first,
                         second);
  return launch_kernel(norm_merge_kernel<false, A>, config, partial, channels, splits, first,
                       second);
}

template <class scalar_t, int VEC>
int launch_channels(NormPass pass, const NormArguments<scalar_t>& a, const LaunchConfig& config) {
  switch (pass) {
    case NormPass::kStats:
      return launch_kernel(norm_stats_channels_kernel<scalar_t, VEC>, config, a);
    case NormPass::kFprop:
      return launch_kernel(norm_fprop_channels_kernel<scalar_t, VEC>, config, a);
    case NormPass::kSums: return launch_kernel(norm_sums_channels_kernel<scalar_t, VEC>, config, a);
    case NormPass::kDgrad:
      return launch_kernel(norm_dgrad_channels_kernel<scalar_t, VEC>, config, a);
  }
  return cudaErrorInvalidValue;
}

template <class scalar_t>
int launch_planes(NormPass pass, const NormArguments<scalar_t>& a, const LaunchConfig& config) {
  switch (pass) {
    case NormPass::kStats: return launch_kernel(norm_stats_planes_kernel<scalar_t>, config, a);
    case NormPass::kFprop: return launch_kernel(norm_fprop_planes_kernel<scalar_t>, config, a);
    case NormPass::kSums: return launch_kernel(norm_sums_planes_kernel<scalar_t>, config, a);
    case NormPass::kDgrad: return launch_kernel(norm_dgrad_planes_kernel<scalar_t>, config, a);
  }
  return cudaErrorInvalidValue;
}

template <class scalar_t>
int launch(NormPass pass, const NormCall& c, void* stream) {
  constexpr int vector = kNormVector<scalar_t>;
  NormPlan plan = plan_norm(pass, c, vector);
  NormArguments<scalar_t> a = arguments_of<scalar_t>(c, plan);
  const bool scalars = c.channels_last && (!a.vectors || c.K % vector != 0);
  if (scalars) {
    plan = plan_norm(pass, c, 1);
    a = arguments_of<scalar_t>(c, plan);
  }
  if (plan.blocks > kMaxBlocks || c.K > kMaxBlocks) return cudaErrorInvalidConfiguration;
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(kNormThreads), 0,
                            stream};
  const int error = !c.channels_last ? launch_planes(pass, a, config)
                    : scalars        ? launch_channels<scalar_t, 1>(pass, a, config)
                                     : launch_channels<scalar_t, vector>(pass, a, config);
  if (error != 0 || !reduces(pass)) return error;
  return launch_merge<scalar_t>(pass, c, plan.splits, stream);
}

template <class Moment, class A>
int launch_tiles(const TileStats& t, void* stream) {
  MergeTilesArguments<Moment, A> a{};
  a.partial = static_cast<const Moment*>(t.partial);
  a.pixels = t.pixels;
  a.tiles = static_cast<int>(t.tiles);
  a.tile_pixels = static_cast<int>(t.tile_pixels);
  a.mean = static_cast<A*>(t.mean);
  a.m2 = static_cast<A*>(t.m2);
  const LaunchConfig config{dim3(static_cast<unsigned>(t.K)), dim3(kMergeTilesThreads), 0, stream};
  return launch_kernel(norm_merge_tiles_kernel<Moment, A>, config, a);
}

int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace

int64_t norm_workspace(NormPass pass, const NormCall& c) {
  if (!reduces(pass)) return 0;
  // Of either way: operands' alignment chooses.
  const int64_t splits = std::max(plan_norm(pass, c, 1).splits,
                                  plan_norm(pass, c, 16 / element_bytes(c.dtype)).splits);
  const int64_t each = pass == NormPass::kStats ? 3 : 2;
  return c.K * splits * each * (c.dtype == DType::kFloat64 ? 8 : 4);
}

int launch_merge_tiles(const TileStats& t, void* stream) {
  if (t.K > kMaxBlocks || t.tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (!t.counted) return launch_tiles<TileMoment, float>(t, stream);
  return t.wide ? launch_tiles<CountedMoment<double>, double>(t, stream)
                : launch_tiles<CountedMoment<float>, float>(t, stream);
}

int launch_norm(NormPass pass, const NormCall& c, void* stream) {
  switch (c.dtype) {
    case DType::kFloat32: return launch<float>(pass, c, stream);
    case DType::kFloat64: return launch<double>(pass, c, stream);
    case DType::kBFloat16: return launch<__nv_bfloat16>(pass, c, stream);
    case DType::kFloat16: return launch<__half>(pass, c, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastconv::cuda
