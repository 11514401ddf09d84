// What the host works out for convolutions of few channels over windows of staged rows
// (conv_rows.cu): an instance's shape, and how it lays a problem out.
#pragma once
#include <string>

#include "conv_algorithm.h"

namespace fastconv::cuda {

extern const ConvAlgorithm conv_rows;

enum class RowsCopy : int;  // detail/conv_rows_params.cuh

struct RowsShape {
  DType dtype;
  Products products;
  int scalar_bytes;
  int fragments, units, block_n, min_blocks, threads;  // of the tile

  constexpr int chunk() const { return 16 / scalar_bytes; }
};

// Axes of pairs are H, W.
struct RowsPlan {
  RowsCopy copy;
  int64_t early, lead;            // elements that a tile's rows, its windows begin early
  int64_t window, chunks, steps;  // see ConvRowsParams
  int64_t tap_rows;
  bool shifted;  // odd windows read a second copy of the rows
  int units_w_log;
  int64_t tile[2], tiles[2], all_tiles, parts;
  int64_t box_h, rows, row_bytes, copy_bytes, rows_bytes, shift, stage_bytes;
  int64_t w_bytes, shared_bytes;
  int64_t blocks;  // of the grid
  double seconds;
};

std::string rows_refusal(const RowsShape&, const ConvProblem&);
// Of a problem that is not refused: the fastest arrangement of a tile's units, for x at a base that
// is a multiple of `aligned` bytes.
RowsPlan rows_plan(const RowsShape&, const ConvProblem&, const Device&, int64_t aligned);

// Null: no such instance.
const RowsShape* find_rows_shape(const std::string& instance);

}  // namespace fastconv::cuda
