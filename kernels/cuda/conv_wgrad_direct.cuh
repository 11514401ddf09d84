// Gradient of the weight:
//
//   dw[k,c,t,r,s] = sum_{n,o,p,q} dy[n, k, o, p, q] * x[n, c, o*st-pd+t*dl, ...]
//
// Mapping   A block makes BLOCK_K filters x up to COLUMNS columns of dw, a column being a pack of
//           channels (16 bytes of acc_t) at one tap (r, s); the filter slice t is the block's. Its
//           sum runs over a chunk of units, a unit being a tile of one output plane: dy [pixel][k]
//           and x with its halo, channels interleaved in packs, are staged in shared memory in
//           acc_t. A thread holds THREAD_K filters x THREAD_COLUMNS columns of sums; per pixel it
//           takes a 16-byte load of x for each of its columns and THREAD_K values of dy, the same
//           for all columns, to kPack * THREAD_K * THREAD_COLUMNS multiply-adds. What lanes and
//           warps are left share the pixels of a row as SLICES, added up in shared memory.
//           Chunks are written to partial[chunk][dw] and added by conv_wgrad_direct_reduce_kernel;
//           a lone chunk is written to dw.
// Layouts   NCHW and NHWC (aligned packs of channels are loaded as vectors).
// Dtypes    f32, f64, bf16, f16; 16-bit types are summed in fp32.
// Padding   is staged as zeros; a non-finite dy makes NaN where its tap lies on padding.
// Cost      2 * macs FLOPs, over the share of the columns in use (63 of 64 at 3x3). Shared memory,
//           8 filters x 2 columns: 10 wavefronts for 64 multiply-adds of a warp, 16 issue cycles
//           on sm_90: bound by the FMA pipe. 4 x 1: 6 for 16, 4 cycles: bound by shared memory, and
//           still ahead where a group has few channels and filters, as nothing else is in use.
//           DRAM: x and dy once (L2 serves the blocks of a chunk), partial sums 2 * chunks * |dw| *
//           sizeof(acc_t) bytes. Not measured on a GPU.
// Determinism   chunks depend on the problem only; every sum has a fixed order.
// Source    the definition.
#pragma once
#include "conv_direct_stage.cuh"

namespace fastconv::cuda {

// THREADS_K x WARP_SLICES warps. A warp's lanes are COLUMN_LANES columns by as many slices as that
// leaves; a thread holds THREAD_K filters x THREAD_COLUMNS columns.
template <int THREAD_K_, int THREADS_K_, int THREAD_COLUMNS_, int COLUMN_LANES_, int WARP_SLICES_>
struct WgradTile {
  static constexpr int THREAD_K = THREAD_K_, THREADS_K = THREADS_K_;
  static constexpr int THREAD_COLUMNS = THREAD_COLUMNS_, COLUMN_LANES = COLUMN_LANES_;
  static constexpr int LANE_SLICES = 32 / COLUMN_LANES, SLICES = WARP_SLICES_ * LANE_SLICES;
  static constexpr int THREADS = 32 * THREADS_K * WARP_SLICES_;
  static constexpr int BLOCK_K = THREAD_K * THREADS_K;
  static constexpr int COLUMNS = COLUMN_LANES * THREAD_COLUMNS;
  // A pack more than a power of two: threads that store neighbouring pixels meet different banks.
  template <class acc>
  static constexpr int K_PITCH = BLOCK_K + kPack<acc>;
  // Up to 128 registers for 64 sums, 80 for 16.
  static constexpr int MIN_BLOCKS = (THREAD_K * THREAD_COLUMNS > 4 ? 512 : 768) / THREADS;
};

struct WgradParams {
  StageBox x_box, dy_box;
  int64_t x_stride_n, x_stride_d, dy_stride_n, dy_stride_o;
  int64_t dw_stride[5];   // k, c, t, r, s
  int64_t weights;        // elements of dw
  int channels, filters;  // of one group
  int in_depth, out[3], taps[3];
  int stride[3], padding[3], dilation[3];

  // The grid, fastest first; then chunks.
  FastDivmod by_k_blocks, by_c_blocks, by_col_blocks, by_row_blocks, by_slices_t, by_groups;
  int block_packs, block_rows, block_cols;  // of columns: packs, filter rows, filter columns
  // Units, fastest first; then images.
  FastDivmod by_tiles_q, by_tiles_p, by_planes;
  int units, chunk_units;
  int tile_p, tile_q, slice_q;

  int slots;                    // of x, per pack
  int step_slots_h;             // from one output row to the next
  int tap_slots_h, tap_step_w;  // from one filter row to the next; columns of the box
};

// to[channel][filter] for those that exist.
template <class stored_t, class acc, int PACK, int THREAD_K>
__device__ __forceinline__ void store_column(stored_t* __restrict__ to, const WgradParams& params,
                                             int channels, int filters,
                                             const acc (&sum)[PACK][THREAD_K]) {
#pragma unroll
  for (int k = 0; k < THREAD_K; ++k) {
    if (k >= filters) break;
#pragma unroll
    for (int c = 0; c < PACK; ++c)
      if (c < channels) to[c * params.dw_stride[1]] = from_acc<stored_t>(sum[c][k]);
    to += params.dw_stride[0];
  }
}

template <class scalar_t, bool channels_last, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS)
    conv_wgrad_direct_kernel(const WgradParams params, const scalar_t* __restrict__ x,
                             const scalar_t* __restrict__ dy, acc_t<scalar_t>* __restrict__ partial,
                             scalar_t* __restrict__ dw) {
  using acc = acc_t<scalar_t>;
  constexpr int PACK = kPack<acc>;
  constexpr int K_PITCH = Tile::template K_PITCH<acc>;
  using Pack = AccPack<acc, PACK>;
  FC_DYN_SHARED(acc, x_staged);  // [packs][slots][PACK], then dy [tile_p * tile_q][K_PITCH]
  acc* const dy_staged = x_staged + params.block_packs * params.slots * PACK;

  uint32_t at, index = blockIdx.x;
  index = params.by_k_blocks.divmod(index, at);
  const int k0 = static_cast<int>(at) * Tile::BLOCK_K;
  index = params.by_c_blocks.divmod(index, at);
  const int c0 = static_cast<int>(at) * params.block_packs * PACK;
  index = params.by_col_blocks.divmod(index, at);
  const int s0 = static_cast<int>(at) * params.block_cols;
  index = params.by_row_blocks.divmod(index, at);
  const int r0 = static_cast<int>(at) * params.block_rows;
  index = params.by_slices_t.divmod(index, at);
  const int t = static_cast<int>(at);
  const int chunk = static_cast<int>(params.by_groups.divmod(index, at));
  const int group = static_cast<int>(at);

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int thread_k = warp % Tile::THREADS_K * Tile::THREAD_K;
  const int first_column = lane % Tile::COLUMN_LANES;
  const int slice = warp / Tile::THREADS_K * Tile::LANE_SLICES + lane / Tile::COLUMN_LANES;
  const int rows = min(params.block_rows, params.taps[1] - r0);
  const int cols = min(params.block_cols, params.taps[2] - s0);
  const int channels = min(params.block_packs * PACK, params.channels - c0);
  const int columns = (channels + PACK - 1) / PACK * rows * cols;

  int column_slot[Tile::THREAD_COLUMNS];  // a lane without a column reads another's
#pragma unroll
  for (int j = 0; j < Tile::THREAD_COLUMNS; ++j) {
    const int own = first_column + j * Tile::COLUMN_LANES;
    const int column = own < columns ? own : 0;
    const int tap = column % (rows * cols), r = tap / cols;
    uint32_t phase;
    const uint32_t slot =
        params.x_box.by_phases.divmod((tap - r * cols) * params.tap_step_w, phase);
    column_slot[j] = (column / (rows * cols)) * params.slots + r * params.tap_slots_h +
                     static_cast<int>(phase) * params.x_box.run + static_cast<int>(slot);
  }
  acc sum[Tile::THREAD_COLUMNS][PACK][Tile::THREAD_K] = {};

  const scalar_t* const x_group =
      x + (static_cast<int64_t>(group) * params.channels + c0) * params.x_box.stride_c;
  const scalar_t* const dy_group =
      dy + (static_cast<int64_t>(group) * params.filters + k0) * params.dy_box.stride_c;
  const int begin = chunk * params.chunk_units;
  const int end = min(params.units, begin + params.chunk_units);
  for (int unit = begin; unit < end; ++unit) {
    uint32_t tile_q, tile_p, o;
    uint32_t n = params.by_tiles_q.divmod(unit, tile_q);
    n = params.by_tiles_p.divmod(n, tile_p);
    n = params.by_planes.divmod(n, o);
    const int d =
        static_cast<int>(o) * params.stride[0] - params.padding[0] + t * params.dilation[0];
    if (d < 0 || d >= params.in_depth) continue;
    const int p0 = static_cast<int>(tile_p) * params.tile_p;
    const int q0 = static_cast<int>(tile_q) * params.tile_q;
    __syncthreads();  // everyone is done with the previous unit
    stage_box<scalar_t, channels_last, Tile::THREADS>(
        params.x_box, x_group + n * params.x_stride_n + d * params.x_stride_d,
        p0 * params.stride[1] - params.padding[1] + r0 * params.dilation[1],
        q0 * params.stride[2] - params.padding[2] + s0 * params.dilation[2], channels, x_staged);
    stage_box<scalar_t, channels_last, Tile::THREADS>(
        params.dy_box, dy_group + n * params.dy_stride_n + o * params.dy_stride_o, p0, q0,
        min(Tile::BLOCK_K, params.filters - k0), dy_staged);
    __syncthreads();
    const int tile_rows = min(params.tile_p, params.out[1] - p0);
    const int q_begin = slice * params.slice_q;
    const int q_end = min(q_begin + params.slice_q, params.out[2] - q0);
    for (int p = 0; p < tile_rows; ++p) {
      const acc* x_pixel = x_staged + (p * params.step_slots_h + q_begin) * PACK;
      const acc* dy_pixel = dy_staged + (p * params.tile_q + q_begin) * K_PITCH + thread_k;
#pragma unroll 2
      for (int q = q_begin; q < q_end; ++q) {
        Pack value[Tile::THREAD_COLUMNS];
#pragma unroll
        for (int j = 0; j < Tile::THREAD_COLUMNS; ++j)
          value[j] = *reinterpret_cast<const Pack*>(x_pixel + column_slot[j] * PACK);
        acc gradient[Tile::THREAD_K];
#pragma unroll
        for (int k = 0; k < Tile::THREAD_K; k += PACK) {
          const Pack some = *reinterpret_cast<const Pack*>(dy_pixel + k);
#pragma unroll
          for (int i = 0; i < PACK; ++i) gradient[k + i] = some.v[i];
        }
#pragma unroll
        for (int j = 0; j < Tile::THREAD_COLUMNS; ++j)
#pragma unroll
          for (int c = 0; c < PACK; ++c)
#pragma unroll
            for (int k = 0; k < Tile::THREAD_K; ++k) sum[j][c][k] += value[j].v[c] * gradient[k];
        x_pixel += PACK;
        dy_pixel += K_PITCH;
      }
    }
  }

  if constexpr (Tile::SLICES > 1) {
    // [slice - 1][thread's sum][filter warp][column]
    constexpr int SUMS = Tile::THREAD_COLUMNS * PACK * Tile::THREAD_K;
    constexpr int SUM_STRIDE = Tile::THREADS_K * Tile::COLUMN_LANES;
    acc* const exchange = x_staged + warp % Tile::THREADS_K * Tile::COLUMN_LANES + first_column;
    __syncthreads();
    if (slice > 0) {
#pragma unroll
      for (int i = 0; i < SUMS; ++i)
        exchange[((slice - 1) * SUMS + i) * SUM_STRIDE] = (&sum[0][0][0])[i];
    }
    __syncthreads();
    if (slice > 0) return;
    for (int other = 0; other < Tile::SLICES - 1; ++other)
#pragma unroll
      for (int i = 0; i < SUMS; ++i)
        (&sum[0][0][0])[i] += exchange[(other * SUMS + i) * SUM_STRIDE];
  }

  const int k_left = params.filters - k0 - thread_k;
#pragma unroll
  for (int j = 0; j < Tile::THREAD_COLUMNS; ++j) {
    const int column = first_column + j * Tile::COLUMN_LANES;
    if (column >= columns) continue;
    const int tap = column % (rows * cols), r = tap / cols;
    const int c = column / (rows * cols) * PACK;
    const int64_t first =
        (static_cast<int64_t>(group) * params.filters + k0 + thread_k) * params.dw_stride[0] +
        (c0 + c) * params.dw_stride[1] + t * params.dw_stride[2] + (r0 + r) * params.dw_stride[3] +
        (s0 + tap - r * cols) * params.dw_stride[4];
    if (partial != nullptr)
      store_column<acc>(partial + chunk * params.weights + first, params, channels - c, k_left,
                        sum[j]);
    else
      store_column<scalar_t>(dw + first, params, channels - c, k_left, sum[j]);
  }
}

}  // namespace fastconv::cuda
