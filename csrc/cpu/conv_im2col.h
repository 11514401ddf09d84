// What the planner (plain code) and the kernels (one copy per instruction set) of the im2col
// algorithm share. Plain data, no standard library.
//
// Every direction is one matrix product per group, never materialised beyond a tile:
//   kAcross  fprop, dgrad   rows = filters,  vecs = pixels,        depth = (channel, tap)
//   kDown    fprop, dgrad   rows = pixels,   vecs = filters,       depth = (tap, channel)
//   kWgrad   wgrad          rows = filters,  vecs = (channel, tap), depth = pixels
// Rows are read in place where memory allows (a broadcast operand with unit stride along depth);
// vecs are packed into panels of NR columns. kAcross suits outputs whose W axis has unit stride,
// kDown suits channels-last outputs.
//
// dgrad is the same gather as fprop, once per residue class of the input coordinate modulo the
// stride: only the taps that hit the class are summed and no zeros are inserted.
#pragma once
#include "epilogue.h"

namespace fastconv::cpu {

enum class Im2colKind : int { kAcross = 0, kDown = 1, kWgrad = 2 };

// One spatial axis of a gather: pixel i of the grid and tap t meet at source coordinate
// i*step + offset + t*offset_step; the pixel lies at coordinate origin + i*spread of the tensor
// that the pixels belong to, and the tap is number tap + t*tap_step of the filter.
struct Im2colAxis {
  int64_t grid, taps;
  int64_t source;  // extent: coordinates outside [0, source) read as zero
  int64_t step, offset, offset_step;
  int64_t tap, tap_step;
  int64_t origin, spread;
};

struct Im2colTensor {  // strides in elements
  char* data;
  int64_t n, c, s[3], group;
};

// Scratch of one thread, in bytes from its base; the sizes are caps for the whole problem.
struct Im2colScratch {
  int64_t rows_cap, vecs_cap, depth_cap;
  int64_t panels, rows, acc, temp, zeros, bias, table, row_offset, vec_offset, depth_offset, bytes;
};

constexpr int64_t kIm2colPackChunk = 64;  // filters per packing task, a multiple of every NR

struct Im2colGemm {
  Im2colKind kind;
  Im2colTensor gather;   // fprop, wgrad: x; dgrad: dy
  Im2colTensor other;    // fprop, dgrad: w with n = output, c = input channel; wgrad: dy
  Im2colTensor dest;     // fprop: y; dgrad: dx; wgrad: dw with n = K, c = C
  const void* bias;      // filters of all groups, or null
  CpuEpilogue epilogue;  // fprop
  Moments moments;       // fprop, kDown; a block is a chunk of pixels
  Im2colAxis axis[3];
  int64_t groups, pixels_per_image, pixels, taps;
  int64_t channels;  // per group, of the gathered tensor
  int64_t filters;   // per group: rows or vecs that are not gathered
  bool tap_inner;    // (channel, tap) counts taps fastest
  bool rows_direct;
  int64_t rows, vecs, depth;
  // Depth blocks: within one unit (a tap's channels, an image's pixels) when unit > 0, else flat.
  int64_t unit, depth_block, depth_blocks;
  int64_t row_chunk, vec_chunk, row_chunks, vec_chunks, slices;
  int64_t row_group;  // rows that are swept together, panel by panel
  // fprop, dgrad: the weights packed beforehand when several chunks of pixels share them, or null:
  // kDown [groups][depth blocks][panels][depth_block][width], kAcross
  // [groups][depth blocks][rows][depth_block].
  char* packed;
  char* partial;  // wgrad, slices > 1: [slices][groups][rows][vecs] of acc_t
  Im2colScratch scratch;

  FC_HOST_DEVICE int64_t filter_chunks() const {
    return (filters + kIm2colPackChunk - 1) / kIm2colPackChunk;
  }
  FC_HOST_DEVICE int64_t pack_tasks() const {
    return packed ? groups * depth_blocks * filter_chunks() : 0;
  }
  // Columns of a packed depth block: every panel but the last is full, the last may be half.
  FC_HOST_DEVICE int64_t packed_columns(int64_t lanes) const {
    return (vecs + lanes - 1) / lanes * lanes;
  }
  FC_HOST_DEVICE int64_t tasks() const { return groups * row_chunks * vec_chunks * slices; }
};

struct Im2colDepthBlock {
  int64_t begin, segments, length;
};

FC_HOST_DEVICE int64_t im2col_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
FC_HOST_DEVICE int64_t im2col_min(int64_t a, int64_t b) { return a < b ? a : b; }
FC_HOST_DEVICE int64_t im2col_max(int64_t a, int64_t b) { return a > b ? a : b; }

FC_HOST_DEVICE Im2colDepthBlock im2col_depth_block(const Im2colGemm& g, int64_t block) {
  if (g.depth == 0) return {0, 0, 0};  // a class of dgrad that no tap reaches
  if (g.unit == 0) {
    const int64_t begin = block * g.depth_block;
    return {begin, 1, im2col_min(g.depth_block, g.depth - begin)};
  }
  if (g.unit > g.depth_block) {
    const int64_t parts = im2col_ceil(g.unit, g.depth_block);
    const int64_t part = block % parts * g.depth_block;
    return {block / parts * g.unit + part, 1, im2col_min(g.depth_block, g.unit - part)};
  }
  const int64_t units = g.depth_block / g.unit;
  const int64_t first = block * units;
  return {first * g.unit, im2col_min(units, g.depth / g.unit - first), g.unit};
}

struct Im2colKernels {
  int lanes[2];  // fp32, fp64
  int tile_rows, tile_vectors;
  // Runs one task of the gemm, 0 <= task < tasks(), in the scratch of one thread.
  void (*run_task[4])(const Im2colGemm&, int64_t task, char* scratch);  // by DType
  // Packs the weights of one (group, depth block, chunk of kPackedColumns or rows).
  void (*pack[4])(const Im2colGemm&, int64_t task, char* scratch);
  // Sums the partial products of filters [begin, end) of all groups, in slice order.
  void (*reduce[4])(const Im2colGemm&, int64_t begin, int64_t end);
};

}  // namespace fastconv::cpu
