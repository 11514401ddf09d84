// What the fused Winograd kernels of all directions share: the shape of a block and the way of its
// sums out of the registers.
//
// A block has 32 x 32 sums (m, n) for each of the n*n points of the tile, 16 for F(2x2,3x3) and 36
// for F(4x4,3x3). A warp takes 2 or 3 points, so that a lane has 64 or 96 sums beside the pixels it
// transforms, and the 8 or 12 warps load the four schedulers evenly. Shared memory holds two stages
// of both operands, 8 deep.
#pragma once
#include "winograd_engine.cuh"
#include "winograd_tile.cuh"

namespace fastconv::cuda {

template <class Wino>
struct WinogradBlockShape {
  static constexpr int kPoints = Wino::kTile * Wino::kTile;
  static constexpr int kPointsPerWarp = Wino::kTile == 4 ? 2 : 3;
  static constexpr int kThreads = kPoints / kPointsPerWarp * 32;
  static constexpr int kBlocksPerSm = Wino::kTile == 4 ? 2 : 1;  // as registers allow
  static constexpr int kStage = kPoints * kWinogradPoint;        // floats of one operand
  static constexpr int kSharedBytes = 4 * kStage * int(sizeof(float));
  // Threads of a block that transform tiles: one per (m or n, r).
  static constexpr int kTransformThreads = kWinogradPoint;
  static_assert(kThreads >= kTransformThreads && kPoints % kPointsPerWarp == 0, "");
  static_assert(kStage % (kThreads * 4) == 0, "whole copies of 16 bytes");
  static_assert(kPoints * 16 * kWinogradSumPitch <= 4 * kStage, "half the sums fit at a time");
};

// The sums of rows m = 16 half to 16 half + 15 to shared memory, [point][m % 16][n], pitch
// kWinogradSumPitch.
template <class Engine, int kPoints>
__device__ __forceinline__ void scatter_sums(int half, int lane, int first_point,
                                             const WinogradSums (&sums)[kPoints], float* to) {
#pragma unroll
  for (int e = 0; e < kPoints; ++e)
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int m = Engine::row(lane, half, i) & 15, n = Engine::column(lane, i);
      to[((first_point + e) * 16 + m) * kWinogradSumPitch + n] = sums[e][half][i >> 2][i & 3];
    }
}

}  // namespace fastconv::cuda
