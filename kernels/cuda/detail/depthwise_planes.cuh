// What the NCHW depthwise kernels of compile-time filter size share: the geometry, how a block's
// number says which tile it has, and the filters of its planes.
#pragma once
#include "fast_divmod.cuh"
#include "plane_rows.cuh"
#include "scalar.cuh"

namespace fastconv::cuda {

constexpr int kDepthwisePlaneThreads = 128;

// Rank 2, dilation 1, one filter per channel. `in` is what is read (x, or dy in dgrad), `out` what
// is written. A block has `planes` neighbouring planes (n,c), and of them a tile of `out` of
// tile_rows x tile_columns; a thread walks down `walk` rows of one or two columns of it.
struct DepthwisePlanes {
  int C;
  int in_h, in_w, out_h, out_w;
  int pad_h, pad_w;     // of the direction's own sum
  int64_t plane_count;  // N * C
  int planes, tile_rows, tile_columns, walk;
  int row_pitch, plane_pitch;          // of the staged tile of `in`, in elements
  bool mirrored;                       // taps in reverse: dgrad of stride 1 is fprop, turned around
  FastDivmod row_tiles, column_tiles;  // of one plane
  FastDivmod walks, columns;           // of one tile: runs of rows, and threads side by side
};

struct PlaneTile {
  int64_t plane;                         // the first of them
  int planes;                            // that exist
  int row, row_end, column, column_end;  // of `out`
};

__device__ __forceinline__ PlaneTile plane_tile(const DepthwisePlanes& g, uint32_t block) {
  PlaneTile tile;
  uint32_t column, row;
  const uint32_t group = g.row_tiles.divmod(g.column_tiles.divmod(block, column), row);
  tile.plane = static_cast<int64_t>(group) * g.planes;
  tile.planes = static_cast<int>(min(static_cast<int64_t>(g.planes), g.plane_count - tile.plane));
  tile.row = static_cast<int>(row) * g.tile_rows;
  tile.row_end = min(tile.row + g.tile_rows, g.out_h);
  tile.column = static_cast<int>(column) * g.tile_columns;
  tile.column_end = min(tile.column + g.tile_columns, g.out_w);
  return tile;
}

// The filters of planes [first, first + planes) and their bias as fp32, filter [planes][TAPS + 1].
// Returns whether the thread's share of the weights is finite. The caller synchronises.
template <int TAPS, class scalar_t>
__device__ __forceinline__ bool stage_plane_filters(float* filter, const scalar_t* w,
                                                    const scalar_t* bias, const PlaneTile& tile,
                                                    int channels, bool mirrored) {
  const int c0 = static_cast<int>(tile.plane % channels);
  bool finite = true;
#pragma unroll 1
  for (int e = threadIdx.x; e < tile.planes * (TAPS + 1); e += blockDim.x) {
    const int plane = e / (TAPS + 1), tap = e - plane * (TAPS + 1);
    const int c = (c0 + plane) % channels;
    if (tap < TAPS) {
      const float value = to_acc(w[static_cast<int64_t>(c) * TAPS + tap]);
      finite = finite && value - value == 0.f;
      filter[plane * (TAPS + 1) + (mirrored ? TAPS - 1 - tap : tap)] = value;
    } else {
      filter[e] = bias == nullptr ? 0.f : to_acc(bias[c]);
    }
  }
  return finite;
}

// One thread's share of a tile: COLUMNS columns of one plane, `walk` rows down.
struct PlaneWalk {
  int plane, column, row, row_end;
  bool any;
};

template <int COLUMNS>
__device__ __forceinline__ PlaneWalk plane_walk(const DepthwisePlanes& g, const PlaneTile& tile,
                                                int item) {
  uint32_t column, walk;
  PlaneWalk found;
  found.plane =
      static_cast<int>(g.walks.divmod(g.columns.divmod(static_cast<uint32_t>(item), column), walk));
  found.column = tile.column + static_cast<int>(column) * COLUMNS;
  found.row = tile.row + static_cast<int>(walk) * g.walk;
  found.row_end = min(found.row + g.walk, tile.row_end);
  found.any = found.column < tile.column_end && found.row < found.row_end;
  return found;
}

}  // namespace fastconv::cuda
