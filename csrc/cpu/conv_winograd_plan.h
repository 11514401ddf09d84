// Tiling and workspace of a Winograd convolution, from the problem alone.
#pragma once
#include "conv_algorithm.h"
#include "conv_winograd.h"

namespace fastconv::cpu::winograd {

int storage_bytes(DType dtype);
int acc_bytes(DType dtype);
inline int64_t blocks_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Extents, tiles and chunks of one group; no operands yet. Nothing here depends on the number of
// threads: the chunks fix the order of wgrad's sums.
WinogradPlan make_winograd_plan(const ConvProblem& p, DType dtype, Direction direction,
                                int tile_out);
WinogradChunk chunk_of(const WinogradPlan& plan, int64_t index);

struct WinogradScratch {  // bytes, multiples of 64
  int64_t v, u, partial;  // shared by the threads of a group
  int64_t thread;         // each thread's
};
WinogradScratch scratch_of(const WinogradPlan& plan, DType dtype, Direction direction);

// Many groups: whole groups to threads, rather than the threads to one group after another.
inline bool group_per_thread(const ConvProblem& p, int threads) {
  return threads > 1 && p.groups >= threads;
}
// Below this a thread's wake-up (about 5 us) is not repaid.
constexpr double kSerialMacs = 1e6;

double winograd_cost(const ConvProblem& p, DType dtype, Direction direction, int tile_out,
                     int threads);

}  // namespace fastconv::cpu::winograd
