// What the NHWC depthwise kernels of compile-time filter size share: the geometry, the filter in
// shared memory, and one row of multiply-adds.
#pragma once
#include "channel_vector.cuh"
#include "fast_divmod.cuh"

namespace fastconv::cuda {

constexpr int kDepthwiseThreads = 128;
// Floats between two taps' rows of the staged filter beyond its channels: its filling, in memory
// order, then goes to other banks for every tap.
constexpr int kFilterSkew = 4;

// Rank 2, dilation 1, one filter per channel. `in` is what is read (x, or dy in dgrad), `out` what
// is written.
struct DepthwiseWindow {
  int C;
  int in_h, in_w, out_h, out_w;
  int pad_h, pad_w;  // of the direction's own sum: negative in dgrad where padding exceeds R - 1
  int tiles;         // of a row of `out`
  int segment;       // tiles that one thread walks along
  uint32_t jobs;     // segments of all rows of all images
  bool mirrored;     // taps in reverse: dgrad of stride 1 is fprop with the filter turned around
  int out_pitch;     // from one pixel of `out` to the next
  FastDivmod channel_blocks, segments, rows;
  FastDivmod job_outputs;  // of a segment
};

// Which output of a tile of TILE a pair (input column of the tile, tap) adds to, or -1.
template <int R, int STRIDE, int TILE>
struct FpropTaps {
  static constexpr int kTaps = R, kTile = TILE;
  static constexpr int kColumns = (TILE - 1) * STRIDE + R;
  static constexpr int output(int column, int tap) {
    const int distance = column - tap;
    return distance < 0 || distance % STRIDE != 0 || distance / STRIDE >= TILE ? -1
                                                                               : distance / STRIDE;
  }
};

// Stride 2: columns of dy, outputs of dx. Each pair of dx columns starts at an even w + pad.
template <int R, int TILE>
struct DgradTaps {
  static constexpr int kTaps = R, kTile = TILE;
  static constexpr int kColumns = TILE / 2 + (R - 1) / 2;
  static constexpr int output(int column, int tap) {
    const int at = 2 * (column - (R - 1) / 2) + tap;
    return at < 0 || at >= TILE ? -1 : at;
  }
};

// The filters of `channels` channels, of which `count` exist, and their bias, as fp32:
// w [count][R*R] -> filter [R*R + 1][pitch], the last row the bias (zero without one). Returns
// whether all weights are finite. Ends in a barrier.
template <int R, class scalar_t>
__device__ __forceinline__ bool stage_filter(float* filter, int channels, int pitch,
                                             const scalar_t* w, const scalar_t* bias, int count,
                                             bool mirrored) {
  constexpr int kTaps = R * R;
  const int threads = blockDim.x * blockDim.y;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  bool finite = true;
#pragma unroll 1
  for (int e = thread; e < channels * kTaps; e += threads) {
    const int c = e / kTaps, tap = e - c * kTaps;
    const float value = c < count ? to_acc(w[e]) : 0.f;
    finite = finite && value - value == 0.f;
    filter[(mirrored ? kTaps - 1 - tap : tap) * pitch + c] = value;
  }
#pragma unroll 1
  for (int c = thread; c < channels; c += threads)
    filter[kTaps * pitch + c] = bias != nullptr && c < count ? to_acc(bias[c]) : 0.f;
  return __syncthreads_or(!finite) == 0;
}

// The rows of `in` that one row of `out` sums, and the filter row of each.
struct RowWalk {
  int row, row_step, tap_row, tap_row_step, count;
};

// acc [kTile][channels of a vector] += one tile's sums over all rows of `walk`.
//   taps    the lane's channels in the staged filter, rows `pitch` apart
//   image   [in_h][in_w][C] at the lane's first channel
//   column  of `in`, where the tile's columns start; may be outside
// A column outside of the image is never read. It is multiplied as a zero where that adds exactly
// nothing, which is where all weights are finite; else every tap is guarded.
template <class Taps, class scalar_t>
__device__ __forceinline__ void accumulate_tile(
    float (&acc)[Taps::kTile][ChannelVector<scalar_t>::kSize], const float* taps, int pitch,
    const scalar_t* image, const DepthwiseWindow& g, const RowWalk& walk, int column, bool finite) {
  using Vector = ChannelVector<scalar_t>;
  constexpr int kColumns = Taps::kColumns;
  const bool interior = column >= 0 && column + kColumns <= g.in_w;
#pragma unroll 1
  for (int i = 0; i < walk.count; ++i) {
    const int row = walk.row + i * walk.row_step;
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(g.in_h)) continue;
    const scalar_t* from = image + (static_cast<int64_t>(row) * g.in_w + column) * g.C;
    const float* const row_taps =
        taps + (walk.tap_row + i * walk.tap_row_step) * Taps::kTaps * pitch;
    if (interior || finite) {
      Vector in[kColumns];
      if (interior) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j, from += g.C) in[j].load(from);
      } else {
#pragma unroll
        for (int j = 0; j < kColumns; ++j, from += g.C) {
          in[j].clear();
          if (static_cast<unsigned>(column + j) < static_cast<unsigned>(g.in_w)) in[j].load(from);
        }
      }
#pragma unroll
      for (int quad = 0; quad < Vector::kQuads; ++quad) {
        float4 weight[Taps::kTaps];
#pragma unroll
        for (int s = 0; s < Taps::kTaps; ++s)
          weight[s] = *reinterpret_cast<const float4*>(row_taps + s * pitch + quad * 4);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float value[4];
          in[j].unpack(quad, value);
#pragma unroll
          for (int s = 0; s < Taps::kTaps; ++s) {
            const int t = Taps::output(j, s);
            if (t < 0) continue;
            acc[t][quad * 4 + 0] += weight[s].x * value[0];
            acc[t][quad * 4 + 1] += weight[s].y * value[1];
            acc[t][quad * 4 + 2] += weight[s].z * value[2];
            acc[t][quad * 4 + 3] += weight[s].w * value[3];
          }
        }
      }
    } else {
      // Rare, so kept small: nothing is reused.
#pragma unroll 1
      for (int j = 0; j < kColumns; ++j, from += g.C) {
        if (static_cast<unsigned>(column + j) >= static_cast<unsigned>(g.in_w)) continue;
        Vector in;
        in.load(from);
#pragma unroll
        for (int t = 0; t < Taps::kTile; ++t)
#pragma unroll 1
          for (int s = 0; s < Taps::kTaps; ++s) {
            if (Taps::output(j, s) != t) continue;
#pragma unroll
            for (int quad = 0; quad < Vector::kQuads; ++quad) {
              float value[4];
              in.unpack(quad, value);
#pragma unroll
              for (int v = 0; v < 4; ++v)
                acc[t][quad * 4 + v] += row_taps[s * pitch + quad * 4 + v] * value[v];
            }
          }
      }
    }
  }
}

// What of the work a thread has: its channels, and a run of tiles of one row of `out`.
struct WindowJob {
  int c, n, row, first, last;  // tiles first ... last - 1 of row (n, row)
  bool any;                    // false: the thread is past the end
};

__device__ __forceinline__ WindowJob window_job(const DepthwiseWindow& g, uint32_t spatial_block,
                                                int c) {
  const uint32_t job = spatial_block * blockDim.y + threadIdx.y;
  WindowJob found;
  uint32_t segment, row;
  const uint32_t n = g.rows.divmod(g.segments.divmod(job < g.jobs ? job : 0, segment), row);
  found.c = c;
  found.n = static_cast<int>(n);
  found.row = static_cast<int>(row);
  found.first = static_cast<int>(segment) * g.segment;
  found.last = min(found.first + g.segment, g.tiles);
  found.any = job < g.jobs && c < g.C;
  return found;
}

// Tile [kTile] from column `at` of a row of `out` at the lane's channels, pixels `pitch` elements
// apart; columns outside of the row are left out.
template <class scalar_t, int TILE>
__device__ __forceinline__ void store_tile(scalar_t* out_row,
                                           float (&acc)[TILE][ChannelVector<scalar_t>::kSize],
                                           int at, const DepthwiseWindow& g, int pitch) {
#pragma unroll
  for (int t = 0; t < TILE; ++t)
    if (static_cast<unsigned>(at + t) < static_cast<unsigned>(g.out_w)) {
      ChannelVector<scalar_t> out;
      out.pack(acc[t]);
      out.store(out_row + static_cast<int64_t>(at + t) * pitch);
    }
}

}  // namespace fastconv::cuda
