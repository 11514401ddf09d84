// Winograd convolution, 3x3, stride 1: F(2x2,3x3) and F(4x4,3x3) for fprop and dgrad, F(3x3,2x2)
// and F(3x3,4x4) for wgrad (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308).
//
//   y tile = A^T [ sum_c (G w G^T) * (B^T x B) ] A,   one product of matrices for each of the n*n
//   elements (n = 4 or 6): M[e][tile][k] = sum_c V[e][tile][c] U[e][c][k].
//
// dgrad is fprop of dy with flipped, transposed filters and padding 2 - pad (negative: cropped).
// wgrad takes the tile of dy as the filter: M[e][k][c] = sum_tile U[e][tile][k] V[e][tile][c].
//
// Order of work. Strips of tiles are transformed into V for a chunk of at most 128 tiles (256 for
// F(2x2)) and 8 MiB, split over the threads by blocks of 64 channels and strips. Then each thread
// takes panels of output channels: for a block of 32 output and 64 input channels it transforms the
// filters into the second cache level (288 KiB), multiplies all tiles of the chunk with them, and
// transforms M back when all input channels are through. U never reaches memory: for 512x512
// filters it would be 36 MiB against 9 MiB of weights, and with a chunk of 128 tiles transforming
// the filters again for the next chunk costs 5% of the products. Output channels lie along the
// vectors and tiles are broadcast, so that few tiles (7x7: four of F(4x4)) waste nothing.
// All strided, bordered and 16-bit storage passes through a small staging buffer
// [row][column][lane] (conv_winograd_stage.h), NCHW by square transposes.
//
// dtypes: fp32, fp64; bf16 and fp16 are widened on load, transformed and summed in fp32, rounded
// once. Layouts: any strides; NCHW and channels-last are vectorised. Workspace: under 32 MiB, and
// for wgrad of several chunks one buffer of the weights' size.
// Determinism: every output is summed in an order fixed by the problem (blocks of 64 input channels
// from zero, then the blocks; wgrad: 128 tiles, then the chunks), whatever the threads. A NaN or an
// infinity reaches all outputs of its tiles.
//
// Error, |err| / (u max sum|x||w|), largest over planes of 17 shapes; see
// tests/winograd_tolerance.py. Direct summation: 3.2.
//     normal operands (positive ones)   fprop         dgrad         wgrad
//     F(2x2,3x3)                         3.6 (11.4)    2.9 (10.2)    5.3 (11.0)
//     F(4x4,3x3)                        20.9 (16.6)    9.8 (16.1)   18.8 (14.6)
//
// Measured against PyTorch's oneDNN on 2 cores of a Zen 3 (AVX2), fp32, in the same run, the better
// tile, on the 3x3 layers with C, K >= 128 of ResNet-50, VGG-16 and GoogLeNet at N = 1 and 8:
//     fprop  NCHW 1.58x to 3.99x, geometric mean 2.64x; channels-last 1.51x to 3.25x, 2.32x
//     dgrad  NCHW 1.56x to 3.51x; wgrad 1.01x (160x320, 7x7, N = 1) to 4.51x (7 of the layers)
// F(4x4) is the better tile on all of them, but for wgrad of 160x320, 7x7 and 512x512, 14x14 at
// N = 1, where the two are equal. The least gains are at 7x7, N = 1, where transforming the filters
// costs as much as the products.
// The 64-byte vector paths (AVX-512) are tested but their speed is unmeasured; there, dgrad reads
// NCHW filters element by element.
#include "conv_winograd.h"

#include <algorithm>
#include <string>

#include "conv_algorithm.h"
#include "conv_winograd_layout.h"
#include "conv_winograd_plan.h"
#include "parallel.h"

namespace fastconv::cpu {
namespace {

using namespace winograd;

std::string axis_pair(const int64_t (&a)[3]) {
  return std::to_string(a[1]) + "x" + std::to_string(a[2]);
}

std::string applicable(const ConvProblem& p, DType, Direction) {
  if (p.rank != 2) return "Winograd needs rank 2, got rank " + std::to_string(p.rank);
  if (p.filter[1] != 3 || p.filter[2] != 3)
    return "Winograd needs a 3x3 filter, got " + axis_pair(p.filter);
  if (p.stride[1] != 1 || p.stride[2] != 1)
    return "Winograd needs stride 1, got " + axis_pair(p.stride);
  if (p.dilation[1] != 1 || p.dilation[2] != 1)
    return "Winograd needs dilation 1, got " + axis_pair(p.dilation);
  return "";
}

WinogradView view_of(const TensorRef& t) {
  return {t.data, t.stride[0], t.stride[1], t.stride[3], t.stride[4]};
}

char* offset(const void* p, int64_t elements, int bytes) {
  return static_cast<char*>(const_cast<void*>(p)) + elements * bytes;
}

// The plan of group g with its operands.
WinogradPlan bind(const WinogradPlan& shape, const ConvCall& c, int64_t g, char* workspace) {
  const int bytes = storage_bytes(c.dtype);
  const ConvProblem& p = c.problem;
  const int64_t Cg = p.channels_per_group(), Kg = p.filters_per_group();
  WinogradPlan plan = shape;
  WinogradView x = view_of(c.x), y = view_of(c.y);
  x.data = offset(x.data, g * Cg * x.c, bytes);
  y.data = offset(y.data, g * Kg * y.c, bytes);
  plan.filter = offset(c.w.data, g * Kg * c.w.stride[0], bytes);
  plan.filter_k = c.w.stride[0];
  plan.filter_c = c.w.stride[1];
  plan.filter_r = c.w.stride[3];
  plan.filter_s = c.w.stride[4];
  plan.in = x;
  plan.out = y;
  if (c.direction == Direction::kDgrad) {
    std::swap(plan.in, plan.out);
    std::swap(plan.filter_k, plan.filter_c);
    plan.filter = offset(plan.filter, 2 * plan.filter_r + 2 * plan.filter_s, bytes);
    plan.filter_r = -plan.filter_r;
    plan.filter_s = -plan.filter_s;
  }
  plan.bias = c.bias ? offset(c.bias, g * Kg, bytes) : nullptr;
  plan.epilogue = c.epilogue;
  plan.moments = c.moments;
  plan.first_channel = g * Kg;
  if (c.epilogue.residual)
    plan.epilogue.residual = offset(c.epilogue.residual, g * Kg * c.y.stride[1], bytes);
  const WinogradScratch s = scratch_of(shape, c.dtype, c.direction);
  plan.v = workspace;
  plan.u = workspace + s.v;
  plan.partial = workspace + s.v + s.u;
  return plan;
}

// Runs fn(begin, end, scratch) over the tasks, on all threads unless the plan is one thread's.
template <class F>
void each(bool threaded, int64_t tasks, const F& fn) {
  if (threaded)
    parallel_for(tasks, [&](int64_t begin, int64_t end) { fn(begin, end, thread_index()); });
  else
    fn(0, tasks, 0);
}

template <int kTileOut>
void run_group(const WinogradPlan& plan, const ConvCall& c, bool threaded, char* thread_scratch) {
  const int dtype = static_cast<int>(c.dtype), tile = kTileOut == 4;
  const int acc = acc_bytes(c.dtype);
  const int64_t bytes = scratch_of(plan, c.dtype, c.direction).thread;
  const int64_t panel = 2 * winograd_kernels_for(c.dtype).vector_bytes / acc;
  const auto step = [&](WinogradStep fn, const WinogradChunk& chunk, int64_t tasks) {
    each(threaded, tasks, [&](int64_t begin, int64_t end, int thread) {
      fn(plan, chunk, begin, end, thread_scratch + thread * bytes);
    });
  };
  for (int64_t i = 0; i < plan.chunks; ++i) {
    const WinogradChunk chunk = chunk_of(plan, i);
    const int64_t strips = chunk.strip_end - chunk.strip_begin;
    if (c.direction == Direction::kWgrad) {
      const WinogradWgradKernels& k = winograd_wgrad_kernels_for(c.dtype);
      const int64_t k_blocks = blocks_of(plan.K, rows(acc));
      step(k.transform_in[tile][dtype], chunk, blocks_of(plan.C, panel) * strips);
      step(k.transform_out[tile][dtype], chunk, k_blocks * strips);
      step(k.products[tile][dtype], chunk, k_blocks * blocks_of(plan.C, width(acc)));
    } else {
      const WinogradKernels& k = winograd_kernels_for(c.dtype);
      step(k.transform_in[tile][dtype], chunk, blocks_of(plan.C, depth(acc)) * strips);
      step(k.products[tile][dtype], chunk, blocks_of(plan.K, panel));
    }
  }
}

template <int kTileOut>
int64_t workspace(const ConvProblem& p, DType dtype, Direction d, int threads) {
  const WinogradPlan plan = make_winograd_plan(p, dtype, d, kTileOut);
  const WinogradScratch s = scratch_of(plan, dtype, d);
  const int64_t shared = s.v + s.u + s.partial;
  if (group_per_thread(p, threads)) return threads * (shared + s.thread);
  return shared + threads * s.thread;
}

template <int kTileOut>
void run(const ConvCall& c) {
  const ConvProblem& p = c.problem;
  const WinogradPlan shape = make_winograd_plan(p, c.dtype, c.direction, kTileOut);
  const WinogradScratch s = scratch_of(shape, c.dtype, c.direction);
  const int64_t shared = s.v + s.u + s.partial;
  char* base = static_cast<char*>(c.workspace);
  if (group_per_thread(p, c.threads)) {
    parallel_for(p.groups, [&](int64_t begin, int64_t end) {
      char* mine = base + thread_index() * (shared + s.thread);
      for (int64_t g = begin; g < end; ++g)
        run_group<kTileOut>(bind(shape, c, g, mine), c, false, mine + shared);
    });
    return;
  }
  const bool threaded = c.threads > 1 && p.macs() > kSerialMacs;
  for (int64_t g = 0; g < p.groups; ++g)
    run_group<kTileOut>(bind(shape, c, g, base), c, threaded, base + shared);
}

template <int kTileOut>
double cost(const ConvProblem& p, DType dtype, Direction d, int threads) {
  return winograd_cost(p, dtype, d, kTileOut, threads);
}

template <int kTileOut>
int64_t moment_blocks(const ConvCall& c) {
  return make_winograd_plan(c.problem, c.dtype, c.direction, kTileOut).chunks;
}

}  // namespace

const ConvAlgorithm conv_winograd_f2x2_3x3{
    "winograd_f2x2_3x3", applicable, workspace<2>, cost<2>, run<2>, moment_blocks<2>};
const ConvAlgorithm conv_winograd_f4x4_3x3{
    "winograd_f4x4_3x3", applicable, workspace<4>, cost<4>, run<4>, moment_blocks<4>};

}  // namespace fastconv::cpu
