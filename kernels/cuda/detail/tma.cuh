// TMA (compute capability 9.0): one thread copies a box of a tensor between global and shared
// memory. The tensor is described by a map that the host encodes (csrc/cuda/tensor_map.h) and that
// is passed as a `const __grid_constant__` parameter. What is outside of the tensor reads as zero
// and is not written. Coordinates go from the innermost axis outwards.
//
// Loads complete on an mbarrier, in bytes: the whole box counts, also where it was outside.
//   tile:   the box starts at the coordinates.
//   im2col: {c, w, h[, d], n} is the first pixel in the frame of the filter's first tap, and
//           {w, h[, d]} offsets move all pixels by one tap. From the first pixel the copy walks
//           along w, h, d and the images, within the box that the map's corners leave, with the
//           map's strides.
// The way back: tma_store.cuh.
#pragma once
#include "mbarrier.cuh"
#if !defined(FC_EMULATE)
#include <cuda.h>
#endif

namespace fastconv::cuda {

#if defined(FC_EMULATE)
using TensorMap = emu::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

__device__ __forceinline__ void tma_prefetch_map(const TensorMap* map) {
#if defined(FC_EMULATE)
  static_cast<void>(map);
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// `to`: aligned to the swizzle's pattern, 1024 bytes for 128B.
__device__ __forceinline__ void tma_load_tile(void* to, const TensorMap* map, uint64_t* barrier,
                                              int c0, int c1, int c2) {
#if defined(FC_EMULATE)
  const int at[] = {c0, c1, c2};
  emu::tensor_load(to, map, 3, at, nullptr, barrier, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
#endif
}

__device__ __forceinline__ void tma_load_tile(void* to, const TensorMap* map, uint64_t* barrier,
                                              int c0, int c1, int c2, int c3) {
#if defined(FC_EMULATE)
  const int at[] = {c0, c1, c2, c3};
  emu::tensor_load(to, map, 4, at, nullptr, barrier, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
#endif
}

// Of [N, H, W, C].
__device__ __forceinline__ void tma_load_im2col(void* to, const TensorMap* map, uint64_t* barrier,
                                                int c, int w, int h, int n, int offset_w,
                                                int offset_h) {
#if defined(FC_EMULATE)
  const int at[] = {c, w, h, n}, offset[] = {offset_w, offset_h};
  emu::tensor_load(to, map, 4, at, offset, barrier, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c), "r"(w), "r"(h), "r"(n),
      "h"(static_cast<unsigned short>(offset_w)), "h"(static_cast<unsigned short>(offset_h))
      : "memory");
#endif
}

// Of [N, D, H, W, C].
__device__ __forceinline__ void tma_load_im2col(void* to, const TensorMap* map, uint64_t* barrier,
                                                int c, int w, int h, int d, int n, int offset_w,
                                                int offset_h, int offset_d) {
#if defined(FC_EMULATE)
  const int at[] = {c, w, h, d, n}, offset[] = {offset_w, offset_h, offset_d};
  emu::tensor_load(to, map, 5, at, offset, barrier, {__FILE__, __LINE__});
#else
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};" ::"r"(shared_u32(to)),
      "l"(map), "r"(shared_u32(barrier)), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n),
      "h"(static_cast<unsigned short>(offset_w)), "h"(static_cast<unsigned short>(offset_h)),
      "h"(static_cast<unsigned short>(offset_d))
      : "memory");
#endif
}

// Orders what this thread wrote to shared memory before what TMA and wgmma read there: every
// writer runs it, then a barrier.
__device__ __forceinline__ void fence_proxy_async() {
#if defined(FC_EMULATE)
  emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace fastconv::cuda
