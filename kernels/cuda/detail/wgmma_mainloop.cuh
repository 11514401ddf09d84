// The ring of stages between a warpgroup that copies and two that multiply: where it lies in shared
// memory, its barriers, and the multiplying side of the loop over gemm_k. A stage is full when its
// bytes have arrived (one mbarrier), free when all warps that multiply have waited for what reads
// it (another one): a warp's wait for wgmma speaks for that warp alone.
#pragma once
#include "wgmma_tile.cuh"

namespace fastconv::cuda {

// stages: [NUM_STAGES][STAGE_BYTES]; full, empty: [NUM_STAGES].
struct WgmmaRing {
  unsigned char *stages, *behind;
  uint64_t *full, *empty;
};

// All threads of the block, before anything else; SPARE bytes behind the stages are the kernel's.
template <class Tile, int SPARE>
__device__ __forceinline__ WgmmaRing wgmma_ring(unsigned char* shared) {
  WgmmaRing ring;
  ring.stages = shared + (Tile::ALIGNMENT - reinterpret_cast<uintptr_t>(shared) % Tile::ALIGNMENT) %
                             Tile::ALIGNMENT;
  ring.behind = ring.stages + Tile::RING_BYTES;
  ring.full = reinterpret_cast<uint64_t*>(ring.behind + SPARE);
  ring.empty = ring.full + Tile::NUM_STAGES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::NUM_STAGES; ++i) {
      mbarrier_init(ring.full + i, 1);
      mbarrier_init(ring.empty + i, Tile::CONSUMER_WARPS);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  return ring;
}

// Gives a stage back to the block's own producer once this warp has read it.
struct WgmmaRelease {
  uint64_t* empty;

  __device__ __forceinline__ void operator()(int slot) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + slot);
  }
};

// acc = the sum over the next k_tiles stages, at least one: accumulators that something else than
// wgmma could have written, zeros of no stage, would make ptxas run the products one by one.
// multiply(stage, accumulate) issues one stage's wgmma into acc, from what was there if
// `accumulate`; release(slot), by all threads of a warp, gives a stage back.
template <class Tile, int PRODUCTS, int COUNT, class Release, class Multiply>
__device__ __forceinline__ void wgmma_mainloop(float (&acc)[PRODUCTS][COUNT],
                                               const unsigned char* stages, uint64_t* full,
                                               const Release& release,
                                               RingPosition<Tile::NUM_STAGES>& at, int k_tiles,
                                               const Multiply& multiply) {
  int read = 0;  // the slot of the products in flight
  for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
    mbarrier_wait(full + at.slot, at.parity);
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) wgmma_pin(acc[i]);
    wgmma_fence();
    multiply(stages + at.slot * Tile::STAGE_BYTES, k_tile != 0);
    wgmma_commit();
    // The stage before is read once these are the only ones in flight.
    wgmma_wait<1>();
    if (k_tile != 0) release(read);
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) wgmma_pin(acc[i]);
    read = at.slot;
    at.advance();
  }
  wgmma_wait<0>();
  release(read);
#pragma unroll
  for (int i = 0; i < PRODUCTS; ++i) wgmma_pin(acc[i]);
}

}  // namespace fastconv::cuda
