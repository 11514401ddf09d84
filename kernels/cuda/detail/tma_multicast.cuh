// TMA loads of which every block in the mask of ranks gets a copy, at the same place of its shared
// memory, while L2 is read once. Each block's own barrier, at the same place again, counts the
// bytes that arrive there. Otherwise as in tma.cuh.
#pragma once
#include "tma.cuh"

namespace fastconv::cuda {

__device__ __forceinline__ void tma_multicast_tile(void* to, const TensorMap* map,
                                                   uint64_t* barrier, unsigned mask, int c0, int c1,
                                                   int c2) {
#if defined(FC_EMULATE)
  const int at[] = {c0, c1, c2};
  emu::tensor_load_multicast(to, map, 3, at, nullptr, barrier, mask, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c0), "r"(c1), "r"(c2),
      "h"(static_cast<unsigned short>(mask))
      : "memory");
#endif
}

// Of [N, H, W, C].
__device__ __forceinline__ void tma_multicast_im2col(void* to, const TensorMap* map,
                                                     uint64_t* barrier, unsigned mask, int c, int w,
                                                     int h, int n, int offset_w, int offset_h) {
#if defined(FC_EMULATE)
  const int at[] = {c, w, h, n}, offset[] = {offset_w, offset_h};
  emu::tensor_load_multicast(to, map, 4, at, offset, barrier, mask, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c), "r"(w), "r"(h), "r"(n),
      "h"(static_cast<unsigned short>(offset_w)), "h"(static_cast<unsigned short>(offset_h)),
      "h"(static_cast<unsigned short>(mask))
      : "memory");
#endif
}

// Of [N, D, H, W, C].
__device__ __forceinline__ void tma_multicast_im2col(void* to, const TensorMap* map,
                                                     uint64_t* barrier, unsigned mask, int c, int w,
                                                     int h, int d, int n, int offset_w,
                                                     int offset_h, int offset_d) {
#if defined(FC_EMULATE)
  const int at[] = {c, w, h, d, n}, offset[] = {offset_w, offset_h, offset_d};
  emu::tensor_load_multicast(to, map, 5, at, offset, barrier, mask, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10}, %11;" ::"r"(
          shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n),
      "h"(static_cast<unsigned short>(offset_w)), "h"(static_cast<unsigned short>(offset_h)),
      "h"(static_cast<unsigned short>(offset_d)), "h"(static_cast<unsigned short>(mask))
      : "memory");
#endif
}

}  // namespace fastconv::cuda
