// Launchers and table of the kernels that move elements by explicit places.
#include "pool_launch.h"
#include "pool_places.cuh"

namespace fastconv::cuda {
namespace pool {
namespace {

template <DType dtype>
struct Word {
  using type = uint16_t;
};
template <>
struct Word<DType::kFloat32> {
  using type = uint32_t;
};
template <>
struct Word<DType::kFloat64> {
  using type = uint64_t;
};
template <DType dtype>
using word_of = typename Word<dtype>::type;

template <DType dtype>
int launch_gather(const PoolCall& call, const Device&, void* stream) {
  using word_t = word_of<dtype>;
  const PoolGeometry g = geometry_of(call, false);
  const bool longs = call.index_kind == PoolIndex::kLong;
  return launch_kernel(
      pool_gather_any_kernel<word_t>, config_for(g.elements, kPoolPlacesThreads, stream), g,
      static_cast<const word_t*>(call.x), longs ? nullptr : static_cast<const uint8_t*>(call.index),
      longs ? static_cast<const int64_t*>(call.index) : nullptr, static_cast<word_t*>(call.result));
}

template <DType dtype, Layout layout>
int launch_unpool(const PoolCall& call, const Device& device, void* stream) {
  using word_t = word_of<dtype>;
  constexpr bool nchw = layout == Layout::kNCHW;
  constexpr int64_t threads = nchw ? 32 : 1;  // of a plane
  PoolUnpool g;
  g.in_size = call.p.in_size(), g.out_size = call.p.out_size();
  g.planes = call.p.N * call.p.C, g.C = call.p.C;
  // Shares of a plane's result, so that few planes still keep the device busy.
  const int64_t wanted = ceil_div(int64_t{device.sm_count} * 1024, g.planes * threads);
  int64_t parts = std::max(int64_t{1}, std::min({wanted, int64_t{8}, g.in_size / 64}));
  g.part = ceil_div(g.in_size, parts);
  parts = ceil_div(g.in_size, g.part);
  g.by_C = FastDivmod64(static_cast<uint64_t>(g.C));
  g.by_parts = FastDivmod64(static_cast<uint64_t>(parts));
  const LaunchConfig config = config_for(g.planes * parts * threads, kPoolPlacesThreads, stream);
  return launch_kernel(
      nchw ? pool_unpool_planes_kernel<word_t> : pool_unpool_channels_kernel<word_t>, config, g,
      static_cast<const word_t*>(call.x), static_cast<const int64_t*>(call.index),
      static_cast<word_t*>(call.result));
}

#define FC_GATHER(dtype, dtype_name, layout, layout_name, kind, kind_name) \
  {"gather_" kind_name "_" dtype_name "_" layout_name "_any",              \
   PoolPass::kGather,                                                      \
   PoolKind::kind,                                                         \
   dtype,                                                                  \
   layout,                                                                 \
   refuse,                                                                 \
   launch_gather<dtype>},
#define FC_UNPOOL(dtype, dtype_name, layout, layout_name, kind, kind_name) \
  {"unpool_" kind_name "_" dtype_name "_" layout_name "_in_order",         \
   PoolPass::kUnpool,                                                      \
   PoolKind::kind,                                                         \
   dtype,                                                                  \
   layout,                                                                 \
   refuse,                                                                 \
   launch_unpool<dtype, layout>},

const PoolInstance kRows[] = {
    FC_POOL_DTYPES(FC_GATHER, kMax, "max")  //
    FC_POOL_DTYPES(FC_UNPOOL, kMax, "max")  //
};

}  // namespace
}  // namespace pool

extern const PoolTable pool_places_table = {pool::kRows,
                                            sizeof(pool::kRows) / sizeof(pool::kRows[0])};

}  // namespace fastconv::cuda
