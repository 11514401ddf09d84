// Winograd convolution on the CPU: the plan that plain code makes and the kernels of each
// instruction set follow. See conv_winograd.cpp for the method and the measurements.
#pragma once
#include <cstdint>

#include "epilogue.h"
#include "isa.h"

namespace fastconv::cpu {

struct WinogradView {  // strides in elements
  void* data;
  int64_t n, c, h, w;
};

// fprop and dgrad: out[n,k,p,q] = sum_{c,r,s} in[n,c,p+r-pad_h,q+s-pad_w] * filter[k,c,r,s], where
// dgrad has in = dy, out = dx and the filter flipped (by negative strides) and transposed.
// wgrad: filter[k,c,r,s] = sum_{n,p,q} in[n,c,p+r-pad_h,q+s-pad_w] * out[n,k,p,q], in = x, out =
// dy. One group: C and K are the group's channels.
struct WinogradPlan {
  int64_t N, C, K;
  int64_t in_h, in_w, out_h, out_w;
  int64_t pad_h, pad_w;  // negative: the first rows and columns of `in` are not used
  WinogradView in, out;
  void* filter;
  int64_t filter_k, filter_c, filter_r, filter_s;
  const void* bias;       // of the group; may be null
  CpuEpilogue epilogue;   // fprop; residual: of the group
  Moments moments;        // fprop; of all groups, a block is a chunk
  int64_t first_channel;  // of the group

  // out is cut into tiles; a strip is a run of tiles side by side, the unit of the transforms.
  int tile_out;  // 2 or 4
  int64_t tiles_y, tiles_x;
  int64_t strips_x, strip_tiles;  // strips per row of tiles, tiles per strip (the last has fewer)
  int64_t strips;                 // N * tiles_y * strips_x
  // A chunk of strips is transformed and consumed before the next one.
  int64_t chunk_strips, chunks;

  // Workspace of one chunk (layouts: conv_winograd_layout.h) and of one thread.
  void* v;        // transformed `in`
  void* u;        // transformed dy (wgrad only)
  void* partial;  // wgrad over several chunks: [K][C rounded up][9] sums
};

// Tiles of the largest strip, so that a staged strip of 64-byte vectors fits the first cache level.
constexpr int64_t kWinogradMaxStripTiles = 16;

struct WinogradChunk {
  int64_t strip_begin, strip_end;
  int64_t tile_begin, tiles;
  int64_t index;
  bool first, last;
};

// One step on tasks [begin, end) with the thread's scratch.
using WinogradStep = void (*)(const WinogradPlan&, const WinogradChunk&, int64_t begin, int64_t end,
                              void* scratch);

// Indexed [tile_out == 4][dtype].
struct WinogradKernels {
  int vector_bytes;
  WinogradStep transform_in[2][4];  // tasks: channel blocks x strips of the chunk
  WinogradStep products[2][4];      // tasks: panels of output channels
};
struct WinogradWgradKernels {
  WinogradStep transform_in[2][4];   // tasks: channel panels x strips of the chunk
  WinogradStep transform_out[2][4];  // tasks: channel blocks x strips of the chunk
  WinogradStep products[2][4];       // tasks: blocks of (k, c)
};
FC_DECLARE_ISA_TABLE(WinogradKernels, winograd_kernels)
FC_DECLARE_ISA_TABLE(WinogradWgradKernels, winograd_wgrad_kernels)

}  // namespace fastconv::cpu
