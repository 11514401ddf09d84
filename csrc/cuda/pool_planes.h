// What the NCHW kernels refuse, and how their blocks share the planes (pool_planes.cu).
#pragma once
#include "detail/pool_planes.cuh"
#include "pool_launch.h"

namespace fastconv::cuda::pool {

// Of a block: six of them and what the runtime takes fit into an SM's 164 KiB (sm_80).
constexpr int64_t kPlanesBytes = 25 * 1024;

// How a block's shared memory is laid out: runs of elements, aligned to 16 bytes, with room for
// their phase.
inline int64_t run_bytes(int64_t elements, int64_t size) {
  return ceil_div(elements * size + 16 - size, 16) * 16;
}

struct PlanesLayout {
  int64_t stage, index_stage, total;
};

// The rows of a strip: as many as fit, all strips alike; 0 where not even one does.
template <class Layout>
int64_t strip_rows(int64_t rows, const Layout& layout) {
  for (int64_t strips = 1; strips <= rows; strips = strips < 8 ? strips + 1 : strips * 9 / 8) {
    const int64_t each = ceil_div(rows, strips);
    if (layout(each, 1).total <= kPlanesBytes) return each;
  }
  return layout(1, 1).total <= kPlanesBytes ? 1 : 0;
}

// Planes of a block: as many as fit, but few enough for two waves of blocks.
template <class Layout>
int64_t block_images(int64_t planes, int64_t rows, const Layout& layout, const Device& device) {
  const int64_t fit = kPlanesBytes / layout(rows, 1).total;
  int64_t images = std::max(
      int64_t{1}, std::min({planes, fit, ceil_div(planes, int64_t{device.sm_count} * 12)}));
  while (images > 1 && layout(rows, images).total > kPlanesBytes) --images;
  return images;
}

// The reason why square windows of neighbours over a plane cannot be taken.
inline std::string refuse_planes(const PoolCall& call) {
  std::string reason = refuse(call);
  if (!reason.empty()) return reason;
  const PoolProblem& p = call.p;
  if (p.adaptive()) return "this kernel takes adaptive axes whose windows are equally long";
  if (p.in[0] != 1 || p.kernel[0] != 1 || p.out[0] != 1)
    return "this kernel takes planes, got D=" + std::to_string(p.in[0]);
  if (p.kernel[1] != p.kernel[2] || p.stride[1] != p.stride[2] || p.dilation[1] != 1 ||
      p.dilation[2] != 1)
    return "this kernel takes square windows of dilation 1, got " + std::to_string(p.kernel[1]) +
           "x" + std::to_string(p.kernel[2]);
  if (p.N * p.C > kMaxCount || p.in_size() > kMaxCount || p.out_size() > kMaxCount)
    return "this kernel takes fewer than 2^31 planes of fewer than 2^31 elements, got " +
           std::to_string(p.N * p.C) + " of " + std::to_string(p.in_size());
  if (call.kind == PoolKind::kLp && call.power != 1 && call.power != 2)
    return "this kernel takes the powers 1 and 2, got " + std::to_string(call.power);
  return {};
}

inline std::string refuse_row(const PoolProblem& p) {
  return "the rows of a window do not fit into shared memory, W=" + std::to_string(p.in[2]);
}

template <class scalar_t>
PoolPlanes<scalar_t> planes_of(const PoolCall& call) {
  const PoolProblem& p = call.p;
  PoolPlanes<scalar_t> g{};
  g.in_h = static_cast<int>(p.in[1]), g.in_w = static_cast<int>(p.in[2]);
  g.out_h = static_cast<int>(p.out[1]), g.out_w = static_cast<int>(p.out[2]);
  g.pad_h = static_cast<int>(p.padding[1]), g.pad_w = static_cast<int>(p.padding[2]);
  g.kernel = static_cast<int>(p.kernel[1]), g.stride = static_cast<int>(p.stride[1]);
  g.planes = static_cast<int>(p.N * p.C);
  g.by_stride = FastDivmod(static_cast<uint32_t>(p.stride[1]));
  const bool lp = call.kind == PoolKind::kLp;
  g.squares = lp && call.power == 2;
  g.divisor = lp ? (call.rescale ? 0.f : 1.f) : static_cast<float>(call.divisor);
  g.whole = lp && call.rescale ? static_cast<float>(p.kernel_size()) : 1.f;
  g.share = g.divisor == 0 ? 0.f : g.whole / g.divisor;
  g.include_pad = call.include_pad;
  g.long_index = call.index_kind == PoolIndex::kLong;
  g.x = static_cast<const scalar_t*>(call.x);
  g.y = static_cast<const scalar_t*>(call.y);
  g.dy = static_cast<const scalar_t*>(call.dy);
  g.result = static_cast<scalar_t*>(call.result);
  g.index = call.index_kind == PoolIndex::kNone ? nullptr : call.index;
  g.seed = call.seed;
  return g;
}

}  // namespace fastconv::cuda::pool
