#include "conv_winograd_plan.h"

namespace fastconv::cpu::winograd {

double winograd_cost(const ConvProblem& p, DType, Direction, int tile_out, int threads) {
  const double n = tile_out + 2;
  const double tiles = double(blocks_of(p.out[1], tile_out)) * blocks_of(p.out[2], tile_out) * p.N;
  const double macs = tiles * n * n * p.K * p.channels_per_group();
  return macs / 30e9 / threads;
}

}  // namespace fastconv::cpu::winograd
