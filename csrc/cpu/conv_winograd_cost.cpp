// Estimated time of a Winograd convolution: the counts of each step times its rate. Rates are
// seconds per vector on one core of a Zen 3 at 3.3 GHz, fitted to 500 float32 timings of 1 to 128
// images, 3 to 512 channels, 7x7 to 112x112 pixels, in all directions. On one thread 87% of the
// estimates are within 20% of the measured time, on two 74% (with the noise of a shared machine);
// taking the tile with the lower estimate costs 0.2% on average over the better tile.
#include <algorithm>

#include "conv_winograd_layout.h"
#include "conv_winograd_plan.h"

namespace fastconv::cpu::winograd {
namespace {

struct Rates {
  int rows;              // of the register tile
  double product;        // one vector multiply-add
  double wgrad_product;  // wgrad's have a strided left operand
  double call;           // one register tile
  double input;          // one transformed vector of the input, or of dy in wgrad
  double filter;         // one transformed vector of the filter
  double taps;           // wgrad: one vector of M, transformed to taps
};
constexpr Rates kBaseline{6, 2.9e-10, 3.2e-10, 1.5e-8, 1.6e-9, 0.9e-9, 1.1e-9};
constexpr Rates kAvx2{6, 1.65e-10, 2.2e-10, 1.8e-8, 2.1e-9, 1.1e-9, 1.7e-9};
// Not measured: vectors of twice the size at 1.5 times the speed of AVX2.
constexpr Rates kAvx512{14, 2.2e-10, 2.9e-10, 2.4e-8, 2.8e-9, 1.5e-9, 2.3e-9};
constexpr Rates kWide{6, 4.5e-10, 6.0e-10, 5.0e-8, 4.5e-9, 2.5e-9, 3.5e-9};  // tests only

constexpr double kOutputShare = 0.2;   // the inverse transform's vectors against the input's
constexpr double kByte = 1.0e-10;      // first touch of the output
constexpr double kRegion = 4e-6;       // waking the threads
constexpr double kCall = 1.0e-5;       // plan, workspace, first misses
constexpr double kSharedCache = 1.06;  // threads compete for the last cache level and for memory

const Rates& active_rates() {
  switch (active_isa()) {
    case Isa::kBaseline: return kBaseline;
    case Isa::kAvx2: return kAvx2;
    case Isa::kAvx512: return kAvx512;
    default: return kWide;
  }
}

// Rows dealt out evenly; fewer than four leave the multiply-add pipelines waiting.
double padded_rows(double count, int rows) {
  const double calls = std::max(1.0, double(blocks_of(int64_t(count + 0.5), rows)));
  return calls * std::max(count / calls, 4.0);
}

// The largest part of `tasks` equal tasks that one of `threads` threads has.
double share(double tasks, int threads) {
  return double(blocks_of(int64_t(tasks), threads)) / tasks;
}

double group_seconds(const WinogradPlan& p, DType dtype, Direction direction, int threads) {
  const Rates& r = active_rates();
  const int bytes = acc_bytes(dtype);
  const int64_t lanes = winograd_kernels_for(dtype).vector_bytes / bytes;
  const double n2 = double(p.tile_out + 2) * (p.tile_out + 2);
  const double tiles = double(p.N) * p.tiles_y * p.tiles_x, chunk = tiles / p.chunks;
  const double c_vectors = blocks_of(p.C, lanes), k_vectors = blocks_of(p.K, lanes);
  double seconds = kCall;
  if (direction == Direction::kWgrad) {
    const int64_t block = rows(bytes), k_blocks = blocks_of(p.K, block);
    const double mine = share(double(k_blocks) * blocks_of(p.C, width(bytes)), threads);
    const double c_panels = blocks_of(p.C, 2 * lanes);
    const double k_rows = k_blocks * padded_rows(double(std::min(p.K, block)), r.rows);
    seconds += n2 * tiles * k_rows * c_panels * 2 * r.wgrad_product * mine;
    seconds += n2 * tiles * (c_panels * 2 + kOutputShare * k_vectors) * r.input / threads;
    seconds += n2 * p.chunks * p.K * c_vectors * r.taps * mine;
  } else {
    const double panels = blocks_of(p.K, 2 * lanes), mine = share(panels, threads);
    const double calls = double(blocks_of(int64_t(chunk + 0.5), r.rows)) *
                         blocks_of(p.C, depth(bytes)) * panels * n2 * p.chunks;
    const double t_rows = p.chunks * padded_rows(chunk, r.rows);
    seconds += (n2 * t_rows * p.C * panels * 2 * r.product + calls * r.call) * mine;
    seconds += n2 * tiles * c_vectors * r.input / threads;
    seconds += n2 * tiles * k_vectors * kOutputShare * r.input * mine;
    seconds += (n2 + 9) * p.chunks * k_vectors * p.C * r.filter * mine;
    seconds += double(p.N) * p.K * p.out_h * p.out_w * storage_bytes(dtype) * kByte;
  }
  if (threads == 1) return seconds;
  return seconds * kSharedCache + kRegion * p.chunks * (direction == Direction::kWgrad ? 3 : 2);
}

}  // namespace

double winograd_cost(const ConvProblem& p, DType dtype, Direction direction, int tile_out,
                     int threads) {
  const WinogradPlan plan = make_winograd_plan(p, dtype, direction, tile_out);
  if (group_per_thread(p, threads))
    return double(blocks_of(p.groups, threads)) * group_seconds(plan, dtype, direction, 1) +
           kRegion;
  const int used = p.macs() > kSerialMacs ? threads : 1;
  // Few channels: the transforms' passes over memory, which the counts above do not see, dominate.
  const double narrow = 1 + 16.0 / double(p.channels_per_group());
  return double(p.groups) * group_seconds(plan, dtype, direction, used) * narrow;
}

}  // namespace fastconv::cpu::winograd
