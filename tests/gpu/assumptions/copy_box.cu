#include "copy_box.h"

#include <cstring>
#include <stdexcept>

#include "detail/cluster.cuh"
#include "detail/tma_multicast.cuh"

namespace assumptions {
using namespace fastconv::cuda;

namespace {

__device__ void load_box(const TensorMap* map, const BoxCopy& p, unsigned char* to, uint64_t* full,
                         int i, unsigned mask) {
  const int* at = p.at[i];
  const int* off = p.offset;
  const bool many = mask != 1;
  switch (p.kind) {
    case CopyKind::kTile3:
      if (many)
        tma_multicast_tile(to, map, full, mask, at[0], at[1], at[2]);
      else
        tma_load_tile(to, map, full, at[0], at[1], at[2]);
      break;
    case CopyKind::kTile4: tma_load_tile(to, map, full, at[0], at[1], at[2], at[3]); break;
    case CopyKind::kIm2col4:
      if (many)
        tma_multicast_im2col(to, map, full, mask, at[0], at[1], at[2], at[3], off[0], off[1]);
      else
        tma_load_im2col(to, map, full, at[0], at[1], at[2], at[3], off[0], off[1]);
      break;
    case CopyKind::kIm2col5:
      if (many)
        tma_multicast_im2col(to, map, full, mask, at[0], at[1], at[2], at[3], at[4], off[0], off[1],
                             off[2]);
      else
        tma_load_im2col(to, map, full, at[0], at[1], at[2], at[3], at[4], off[0], off[1], off[2]);
      break;
  }
}

// out: [blocks][boxes * bytes / 4]. Clusters: everyone has said what it expects before anyone
// loads.
template <int CLUSTER>
__global__ void __launch_bounds__(128, 1)
    copy_boxes_kernel(const __grid_constant__ TensorMap map, BoxCopy p, uint32_t* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const boxes =
      dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  const int bytes = p.boxes * p.bytes;
  uint64_t* const full = reinterpret_cast<uint64_t*>(boxes + bytes);
  uint32_t* const words = reinterpret_cast<uint32_t*>(boxes);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = kPoison;
  fence_proxy_async();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, bytes);
  }
  __syncthreads();
  if constexpr (CLUSTER > 1) {
    cluster_sync();
    const int mine = static_cast<int>(cluster_rank());
    if (threadIdx.x == 0)
      load_box(&map, p, boxes + mine % 2 * p.bytes, full, mine, 3u << (mine & ~1));
  } else if (threadIdx.x == 0) {
    for (int i = 0; i < p.boxes; ++i) load_box(&map, p, boxes + i * p.bytes, full, i, 1);
  }
  mbarrier_wait(full, 0);
  uint32_t* const to = out + static_cast<size_t>(blockIdx.x) * (bytes / 4);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) to[i] = words[i];
  if constexpr (CLUSTER > 1) cluster_sync();
#endif
}

}  // namespace

Words copied_boxes(const TensorMap& map, const BoxCopy& copy, int cluster) {
  const size_t bytes = static_cast<size_t>(copy.boxes) * copy.bytes;
  const Memory out(bytes * cluster);
  const LaunchConfig config{dim3(cluster), dim3(128), bytes + 1024 + 8, nullptr};
  finish([&] {
    return cluster == 1
               ? launch_kernel(copy_boxes_kernel<1>, config, map, copy, out.as<uint32_t>())
               : launch_clusters(cluster == 2 ? copy_boxes_kernel<2> : copy_boxes_kernel<4>, config,
                                 cluster, map, copy, out.as<uint32_t>());
  });
  return out.words();
}

std::vector<uint16_t> numbered(size_t count) {
  if (count >= 0x7F00) throw std::length_error("more elements than bf16 has positive numbers");
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint16_t>(i + 1);
  return values;
}

Words swizzled_rows(const std::vector<uint16_t>& rows) {
  Words words(rows.size() / 2);
  const auto* const from = reinterpret_cast<const unsigned char*>(rows.data());
  auto* const to = reinterpret_cast<unsigned char*>(words.data());
  for (size_t at = 0; at < rows.size() * 2; at += 16)
    std::memcpy(to + swizzled_place(at), from + at, 16);
  return words;
}

}  // namespace assumptions
