// fp32 of nearly fp32's accuracy on the warpgroup tensor cores of sm_90a: conv_gather_tma.cuh's
// product y [N*O*P*Q, K] = cols [N*O*P*Q, T*R*S*C] * w^T for NHWC, of dgrad the one over dy with
// the filter turned, with every operand as the sum of two TF32 numbers, v = big + small to within
// 2^-22 |v|, and three of the four products of those:
//
//   cols * w^T = small * big^T + big * small^T + big * big^T       (small * small: 2^-22 of it)
//
// w is split beforehand, into the workspace (conv_filter_tf32.cuh): both parts of a tile come by
// TMA. Pixels come as they are, and each warp splits its own rows on the way from shared memory
// to registers, from which wgmma takes its first operand: the ring holds 128 (BLOCK_M + 2 BLOCK_N)
// bytes a stage where two parts of both would be 256 (BLOCK_M + BLOCK_N).
//
// Tensor cores cut off what does not fit into a sum. So a stage's products, 32 of gemm_k, start
// from zero, the small ones first, and are added to the running sums by fp32 additions, which
// round; what is cut off is then a few units of a sum of 32 products. A thread holds both sums,
// BLOCK_N / 2 registers each, and both parts of 16 pixels' values.
//
// While one warpgroup waits for its products, splits and adds, the other one's are under way. Per
// stage of 128x128: 3 * 2 * 128 * 128 * 32 FLOPs of TF32, 1536 clocks at 2048 a clock; from L2 48
// KiB, 32 bytes a clock of it, where 5.5 TB/s over 132 SMs at 1.7 GHz are 25: bound by L2, at 110
// TFLOP/s of fp32's products, where FMA's peak is 57. Two blocks that share w read 32 KiB each, 21
// bytes a clock: bound by the products, at 143 TFLOP/s. Shared memory: 48 KiB in, A once and B
// three times to each warpgroup out, 1280 of the clocks. A stage of a warp is 276 instructions, of
// which some 150 split and 64 add: 552 of a scheduler's slots. Workspace: 8 bytes per element of w.
// Deterministic. Not measured on a GPU.
//
// Source: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while
// surpassing the FP32 theoretical peak performance", 2022.
#pragma once
#include "conv_gather_tma.cuh"
#include "detail/mma.cuh"

namespace fastconv::cuda {

// In place of ConvTmaMainloop.
template <class Tile>
struct ConvTmaTf32x3Mainloop {
  static constexpr int STEPS = 4, N = Tile::BLOCK_N;  // steps of 8 floats of gemm_k
  static_assert(Tile::PRODUCTS == 1, "registers hold the sums of 64 rows");

  template <class Release>
  static __device__ __forceinline__ void run(float (&acc)[1][N / 2], const unsigned char* ring,
                                             uint64_t* full, const Release& release,
                                             RingPosition<Tile::NUM_STAGES>& at, int consumer,
                                             int k_tiles) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    // The row of 128 bytes that the lane addresses for ldmatrix, and which half of a step.
    const int row = (consumer * 64 + warp * 16 + lane % 16) * 128, half = lane / 16;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[0][i] = 0.f;
    for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
      mbarrier_wait(full + at.slot, at.parity);
      const unsigned char* const stage = ring + at.slot * Tile::STAGE_BYTES;
      uint32_t big[STEPS][4], small[STEPS][4];
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        ldmatrix_x4(big[step], stage + row + ((step * 2 + half) ^ (lane & 7)) * 16);
        split_tf32(big[step], small[step]);
      }
      const uint64_t big_w = wgmma_operand(stage + Tile::A_BYTES);
      const uint64_t small_w = wgmma_moved(big_w, N * 128);
      float part[N / 2];
      wgmma_pin(part);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        wgmma_with_registers<float, N>(part, small[step], wgmma_moved(big_w, step * 32), step != 0);
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        wgmma_with_registers<float, N>(part, big[step], wgmma_moved(small_w, step * 32), true);
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        wgmma_with_registers<float, N>(part, big[step], wgmma_moved(big_w, step * 32), true);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(part);
      release(at.slot);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) acc[0][i] += part[i];
      at.advance();
    }
  }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_fprop_tma_tf32x3_kernel(const __grid_constant__ ConvTmaParams p) {
  conv_gather_tma<Tile, false, ConvTmaTf32x3Mainloop<Tile>>(p);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, 1)
    conv_dgrad_tma_tf32x3_kernel(const __grid_constant__ ConvTmaParams p) {
  conv_gather_tma<Tile, false, ConvTmaTf32x3Mainloop<Tile>, false>(p);
}

}  // namespace fastconv::cuda
