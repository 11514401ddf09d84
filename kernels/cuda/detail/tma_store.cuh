// TMA stores: one thread has a box of shared memory copied to a tensor in global memory, whose map
// clips it at the tensor's ends. What threads have written to the box needs fence_proxy_async() in
// each of them, then a barrier, before.
//
// Stores are waited for in groups by the thread that issued them, and by no other: for their
// source, before somebody writes there again or the block ends; for the tensor, before somebody of
// the same kernel reads it (behind a barrier after the wait). Source: PTX ISA, "Data Movement and
// Conversion Instructions: cp.async.bulk.tensor".
#pragma once
#include "tma.cuh"

namespace fastconv::cuda {

// `from`: aligned to the swizzle's pattern, 1024 bytes for 128B. Coordinates from the innermost
// axis outwards.
template <class... Coordinates>
__device__ __forceinline__ void tma_store_tile(const TensorMap* map, const void* from,
                                               Coordinates... c) {
  constexpr int RANK = sizeof...(c);
  static_assert(RANK >= 2 && RANK <= 5);
  const int at[] = {c...};
#if defined(FC_EMULATE)
  emu::tensor_store(map, RANK, at, from, {__FILE__, __LINE__});
#else
  const unsigned source = shared_u32(from);
  if constexpr (RANK == 2)
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            map),
        "r"(source), "r"(at[0]), "r"(at[1])
        : "memory");
  else if constexpr (RANK == 3)
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::
            "l"(map),
        "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  else if constexpr (RANK == 4)
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}],"
        " [%1];" ::"l"(map),
        "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}],"
        " [%1];" ::"l"(map),
        "r"(source), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
#endif
}

__device__ __forceinline__ void tma_store_commit() {
#if defined(FC_EMULATE)
  emu::bulk_commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Until at most N groups of this thread still read shared memory.
template <int N>
__device__ __forceinline__ void tma_store_wait_read() {
#if defined(FC_EMULATE)
  emu::bulk_wait_read(N);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#endif
}

// Until at most N groups of this thread are in flight; the others' tensors are written.
template <int N>
__device__ __forceinline__ void tma_store_wait() {
#if defined(FC_EMULATE)
  emu::bulk_wait(N);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace fastconv::cuda
