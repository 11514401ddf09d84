// Forward convolution and gradient of the input, which are one gather:
//
//   out[n,g,ko,i] = sum_{tap,ci} in[n,g,ci, i*step + origin + tap*tap_step] * w[g, ko, ci, tap]
//
// fprop: in = x, out = y, step = stride, tap_step = dilation. dgrad: in = dy, out = dx, and the
// outputs of an axis fall into `stride` residue classes of (coordinate + padding) mod stride.
// Inside a class the gradient is a dense gather with step 1 over the taps that reach it, every
// (stride / gcd(stride, dilation))-th one, dilation / gcd apart in dy: no zeros are inserted, and
// each tap is visited in one class only. Stride 1 is one class: dy against the flipped weights.
//
// Mapping   A block makes BLOCK_K output channels of one group x BLOCK_PIX output positions
//           (tile_p x tile_q of one plane, class and image); a thread holds THREAD_K x THREAD_PIX
//           sums in registers. The sum runs over steps: a group of filter rows and columns, a
//           filter slice t, a chunk of channels. A step stages the input tile with its halo,
//           channels interleaved in packs of 16 bytes, and the weights
//           [tap][channel][BLOCK_K] in shared memory, all in acc_t; then a tap costs a thread
//           THREAD_PIX 16-byte loads of inputs and kPack * THREAD_K / kPack broadcast loads of
//           weights for kPack * THREAD_K * THREAD_PIX multiply-adds.
// Layouts   NCHW and NHWC (aligned packs of channels are loaded and stored as vectors).
// Dtypes    f32, f64, bf16, f16; 16-bit types are summed in fp32.
// Padding   is staged as zeros; 0 * inf at the border is put right by conv_gather_direct_border.
// Cost      2 * macs FLOPs on whole tiles. Shared memory: THREAD_K = THREAD_PIX = 8 reads 40
//           wavefronts for 256 multiply-adds of a warp, 64 issue cycles on sm_90: bound by the FMA
//           pipe. DRAM: in and w once (L2 serves the blocks that share them), out once. Per block
//           and channel: halo positions + taps * BLOCK_K loads for taps * BLOCK_K * BLOCK_PIX
//           multiply-adds. Not measured on a GPU.
// Statistics    of fprop's y where `moments` asks, per tile (detail/block_moments.cuh).
// Determinism   one thread sums one output in a fixed order.
// Source    the definition; the residue classes are the "transposed convolution as stride^2 dense
//           ones" of Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
//           2016, generalised to dilation.
#pragma once
#include "conv_direct_stage.cuh"
#include "conv_gather_direct_border.cuh"
#include "conv_gather_direct_params.cuh"
#include "detail/block_moments.cuh"
#include "detail/epilogue.cuh"

namespace fastconv::cuda {

// A block's tile: THREADS_K x THREADS_PIX threads with THREAD_K x THREAD_PIX sums each.
template <int THREAD_K_, int THREAD_PIX_, int THREADS_K_, int THREADS_PIX_>
struct GatherTile {
  static constexpr int THREAD_K = THREAD_K_, THREAD_PIX = THREAD_PIX_;
  static constexpr int THREADS_K = THREADS_K_, THREADS_PIX = THREADS_PIX_;
  static constexpr int THREADS = THREADS_K * THREADS_PIX;
  static constexpr int BLOCK_K = THREAD_K * THREADS_K;
  static constexpr int BLOCK_PIX = THREAD_PIX * THREADS_PIX;
  // Weights are written with a tap or channel per thread: 4 more than a power of two spread those
  // rows over the banks, and keep them aligned to 16 bytes.
  static constexpr int K_PITCH = BLOCK_K + 4;
  static constexpr int MIN_BLOCKS = 512 / THREADS;  // up to 128 registers
};

// Which part of the output a block makes.
struct GatherBlock {
  int at_class[3];
  int k0, p0, q0;  // first channel of the group, first row and column of the class
  int o;           // depth in the class
  int group, n;
};

__device__ __forceinline__ GatherBlock gather_block(const GatherParams& params, uint32_t index,
                                                    int block_k) {
  GatherBlock block;
  uint32_t at;
  // Classes innermost: blocks that interleave their outputs in the same cache lines run together.
  index = params.by_class[2].divmod(index, at), block.at_class[2] = static_cast<int>(at);
  index = params.by_class[1].divmod(index, at), block.at_class[1] = static_cast<int>(at);
  index = params.by_class[0].divmod(index, at), block.at_class[0] = static_cast<int>(at);
  index = params.by_k_blocks.divmod(index, at), block.k0 = static_cast<int>(at) * block_k;
  index = params.by_tiles_q.divmod(index, at);
  block.q0 = static_cast<int>(at) << params.tile_q_log2;
  index = params.by_tiles_p.divmod(index, at), block.p0 = static_cast<int>(at) * params.tile_p;
  index = params.by_planes.divmod(index, at), block.o = static_cast<int>(at);
  index = params.by_groups.divmod(index, at), block.group = static_cast<int>(at);
  block.n = static_cast<int>(index);
  return block;
}

// sum[k][pixel] += w[tap][channel][k] * in[pixel + tap][channel] over the staged taps and channels.
template <class acc, class Tile>
__device__ __forceinline__ void multiply_step(const GatherParams& params, const acc* in,
                                              const int (&pixel)[Tile::THREAD_PIX], const acc* w,
                                              int rows, int cols, int channels,
                                              acc (&sum)[Tile::THREAD_K][Tile::THREAD_PIX]) {
  constexpr int PACK = kPack<acc>;
  using Pack = AccPack<acc, PACK>;
  const int packs = (channels + PACK - 1) / PACK;
  const int step_channels = PACK << params.box.packs_log2;
  for (int pack = 0; pack < packs; ++pack) {
    const acc* w_tap = w + pack * PACK * Tile::K_PITCH;
    const int pack_channels = channels - pack * PACK;
    for (int r = 0; r < rows; ++r) {
      int phase = 0;
      int slot = pack * params.slots + r * params.tap_slots_h;
      for (int s = 0; s < cols; ++s) {
        Pack x[Tile::THREAD_PIX];
#pragma unroll
        for (int j = 0; j < Tile::THREAD_PIX; ++j)
          x[j] = *reinterpret_cast<const Pack*>(in + (pixel[j] + slot) * PACK);
#pragma unroll
        for (int c = 0; c < PACK; ++c) {
          if (c < pack_channels) {
            acc filter[Tile::THREAD_K];
#pragma unroll
            for (int k = 0; k < Tile::THREAD_K; k += PACK) {
              const Pack four = *reinterpret_cast<const Pack*>(w_tap + c * Tile::K_PITCH + k);
#pragma unroll
              for (int i = 0; i < PACK; ++i) filter[k + i] = four.v[i];
            }
#pragma unroll
            for (int k = 0; k < Tile::THREAD_K; ++k)
#pragma unroll
              for (int j = 0; j < Tile::THREAD_PIX; ++j) sum[k][j] += filter[k] * x[j].v[c];
          }
        }
        w_tap += step_channels * Tile::K_PITCH;
        // The next column of taps, in the order that phases put them in.
        slot += params.tap_slots_w;
        phase += params.tap_phase_w;
        if (phase >= params.phases_w) {
          phase -= params.phases_w;
          slot += params.phase_wrap_w;
        }
      }
    }
  }
}

// Where the residual of an output is; fprop's classes are one, and its outputs coordinates.
template <class scalar_t>
__device__ __forceinline__ const scalar_t* residual_at(
    const GatherParams& params, const StoreEpilogue<acc_t<scalar_t>>& epilogue,
    const GatherBlock& block, int channel, int p, int q) {
  return static_cast<const scalar_t*>(epilogue.residual) + block.n * params.residual_stride_n +
         channel * params.out_stride_k + block.o * params.residual_stride_d +
         p * params.residual_stride_h + q * params.residual_stride_w;
}

template <class scalar_t, bool channels_last, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS)
    conv_gather_direct_kernel(const GatherParams params, const scalar_t* __restrict__ in,
                              const scalar_t* __restrict__ w, const scalar_t* __restrict__ bias,
                              const StoreEpilogue<acc_t<scalar_t>> epilogue,
                              const MomentTiles<acc_t<scalar_t>> moments,
                              scalar_t* __restrict__ out) {
  using acc = acc_t<scalar_t>;
  constexpr int PACK = kPack<acc>;
  FC_DYN_SHARED(acc, in_staged);  // [packs][slots][PACK], then weights [tap][channel][K_PITCH]
  acc* const w_staged = in_staged + (params.slots << params.box.packs_log2) * PACK;

  const GatherBlock block = gather_block(params, blockIdx.x, Tile::BLOCK_K);
  const GatherAxis& axis_d = params.axis[0][block.at_class[0]];
  const GatherAxis& axis_h = params.axis[1][block.at_class[1]];
  const GatherAxis& axis_w = params.axis[2][block.at_class[2]];
  // Classes differ by one output; the grid is made for the largest.
  if (block.o >= axis_d.outputs || block.p0 >= axis_h.outputs || block.q0 >= axis_w.outputs) return;

  const int thread_k = static_cast<int>(threadIdx.x) / Tile::THREADS_PIX * Tile::THREAD_K;
  int pixel[Tile::THREAD_PIX];  // slots
#pragma unroll
  for (int j = 0; j < Tile::THREAD_PIX; ++j) {
    const int at = static_cast<int>(threadIdx.x) % Tile::THREADS_PIX + j * Tile::THREADS_PIX;
    pixel[j] = (at >> params.tile_q_log2) * params.step_slots_h + (at & (params.tile_q - 1));
  }
  acc sum[Tile::THREAD_K][Tile::THREAD_PIX] = {};

  const scalar_t* const in_image =
      in + block.n * params.in_stride_n +
      static_cast<int64_t>(block.group) * params.channels * params.box.stride_c;
  const scalar_t* const w_block =
      w + block.group * params.w_group + static_cast<int64_t>(block.k0) * params.w_out;
  const int filters = min(Tile::BLOCK_K, params.filters - block.k0);
  const int step_channels = PACK << params.box.packs_log2;

  for (int r0 = 0; r0 < axis_h.taps; r0 += params.step_rows) {
    const int rows = min(params.step_rows, axis_h.taps - r0);
    const int h0 = block.p0 * params.in_step[1] + axis_h.in_origin + r0 * params.tap_step[1];
    for (int s0 = 0; s0 < axis_w.taps; s0 += params.step_cols) {
      const int cols = min(params.step_cols, axis_w.taps - s0);
      const int w0 = block.q0 * params.in_step[2] + axis_w.in_origin + s0 * params.tap_step[2];
      const int row_step = axis_h.filter_step * params.w_tap[1];
      const int col_step = axis_w.filter_step * params.w_tap[2];
      // Rows that follow one another in memory are staged as one.
      const bool one_row = row_step == cols * col_step;
      for (int t = 0; t < axis_d.taps; ++t) {
        const int d = block.o * params.in_step[0] + axis_d.in_origin + t * params.tap_step[0];
        if (d < 0 || d >= params.in_depth) continue;
        const int w_first = (axis_d.filter_begin + t * axis_d.filter_step) * params.w_tap[0] +
                            (axis_h.filter_begin + r0 * axis_h.filter_step) * params.w_tap[1] +
                            (axis_w.filter_begin + s0 * axis_w.filter_step) * params.w_tap[2];
        for (int c0 = 0; c0 < params.channels; c0 += step_channels) {
          const int channels = min(step_channels, params.channels - c0);
          __syncthreads();  // everyone is done with the previous step
          stage_box<scalar_t, channels_last, Tile::THREADS>(
              params.box,
              in_image + d * params.in_stride_d + static_cast<int64_t>(c0) * params.box.stride_c,
              h0, w0, channels, in_staged);
          for (int r = 0; r < (one_row ? 1 : rows); ++r) {
            const WeightAxis tap = {one_row ? rows * cols : cols, col_step,
                                    step_channels * Tile::K_PITCH};
            const WeightAxis filter = {filters, params.w_out, 1};
            const WeightAxis channel = {channels, params.w_in, Tile::K_PITCH};
            const WeightAxis inner = params.transposed ? filter : channel;
            const WeightAxis outer = params.transposed ? channel : filter;
            const WeightAxis axes[3] = {channels_last ? inner : tap, channels_last ? tap : inner,
                                        outer};
            stage_weights<scalar_t, Tile::THREADS>(
                w_block + static_cast<int64_t>(c0) * params.w_in + w_first + r * row_step, axes,
                w_staged + r * cols * step_channels * Tile::K_PITCH);
          }
          __syncthreads();
          multiply_step<acc, Tile>(params, in_staged, pixel, w_staged + thread_k, rows, cols,
                                   channels, sum);
        }
      }
    }
  }

  // out[n, group*filters + k0 + k, o, p, q]
  scalar_t* const out_plane =
      out + block.n * params.out_stride_n +
      static_cast<int64_t>(axis_d.out_begin + block.o * params.out_step[0]) * params.out_stride_d;
  const int first = block.group * params.filters + block.k0;  // output channel of the block's first
  const int k_left = params.filters - block.k0 - thread_k;
  bool nan = false;
  if (bias != nullptr) {
#pragma unroll
    for (int k = 0; k < Tile::THREAD_K; ++k) {
      const acc b = k < k_left ? to_acc(bias[first + thread_k + k]) : acc(0);
#pragma unroll
      for (int j = 0; j < Tile::THREAD_PIX; ++j) sum[k][j] += b;
    }
  }
#pragma unroll
  for (int j = 0; j < Tile::THREAD_PIX; ++j) {
    const int at = static_cast<int>(threadIdx.x) % Tile::THREADS_PIX + j * Tile::THREADS_PIX;
    const int p = block.p0 + (at >> params.tile_q_log2);
    const int q = block.q0 + (at & (params.tile_q - 1));
    if (p >= axis_h.outputs || q >= axis_w.outputs) continue;
    scalar_t* const to =
        out_plane +
        static_cast<int64_t>(axis_h.out_begin + p * params.out_step[1]) * params.out_stride_h +
        static_cast<int64_t>(axis_w.out_begin + q * params.out_step[2]) * params.out_stride_w +
        static_cast<int64_t>(first + thread_k) * params.out_stride_k;
    acc y[Tile::THREAD_K];
#pragma unroll
    for (int k = 0; k < Tile::THREAD_K; ++k) {
      y[k] = sum[k][j];
      nan |= y[k] != y[k];
    }
    if (epilogue.any)
      apply_epilogue(epilogue, y, [&](acc(&r)[Tile::THREAD_K]) {
        const scalar_t* const from =
            residual_at<scalar_t>(params, epilogue, block, first + thread_k, p, q);
        if (channels_last && params.vector_residual && k_left >= Tile::THREAD_K) {
          load_aligned(from, r);
        } else {
#pragma unroll
          for (int k = 0; k < Tile::THREAD_K; ++k)
            if (k < k_left) r[k] = to_acc(from[channels_last ? k : k * params.out_stride_k]);
        }
      });
    scalar_t value[Tile::THREAD_K];
#pragma unroll
    for (int k = 0; k < Tile::THREAD_K; ++k) value[k] = from_acc<scalar_t>(y[k]);
    if (channels_last && params.vector_stores && k_left >= Tile::THREAD_K) {
      store_vectors<scalar_t, Tile::THREAD_K>(to, value);
    } else {
#pragma unroll
      for (int k = 0; k < Tile::THREAD_K; ++k)
        if (k < k_left) to[channels_last ? k : k * params.out_stride_k] = value[k];
    }
  }

  const int last_p = min(block.p0 + params.tile_p, axis_h.outputs) - 1;
  const int last_q = min(block.q0 + params.tile_q, axis_w.outputs) - 1;
  const bool border = reaches_border(params, axis_h, 1, params.box.extent_h, block.p0, last_p) ||
                      reaches_border(params, axis_w, 2, params.box.extent_w, block.q0, last_q);
  const int doubtful = border && __syncthreads_or(nan) ? filters * Tile::BLOCK_PIX : 0;
  for (int i = static_cast<int>(threadIdx.x); i < doubtful; i += Tile::THREADS) {
    const int k = i / Tile::BLOCK_PIX, at = i % Tile::BLOCK_PIX;
    const int p = block.p0 + (at >> params.tile_q_log2);
    const int q = block.q0 + (at & (params.tile_q - 1));
    if (p > last_p || q > last_q) continue;
    scalar_t* const to =
        out_plane +
        static_cast<int64_t>(axis_h.out_begin + p * params.out_step[1]) * params.out_stride_h +
        static_cast<int64_t>(axis_w.out_begin + q * params.out_step[2]) * params.out_stride_w +
        static_cast<int64_t>(first + k) * params.out_stride_k;
    const acc came_out = to_acc(*to);
    if (came_out == came_out || !(reaches_border(params, axis_h, 1, params.box.extent_h, p, p) ||
                                  reaches_border(params, axis_w, 2, params.box.extent_w, q, q)))
      continue;
    const acc again = sum_inside(params, axis_d, axis_h, axis_w, in_image,
                                 w_block + static_cast<int64_t>(k) * params.w_out, block.o, p, q);
    acc y[1] = {again + (bias == nullptr ? acc(0) : to_acc(bias[first + k]))};
    if (epilogue.any)
      apply_epilogue(epilogue, y, [&](acc(&r)[1]) {
        r[0] = to_acc(*residual_at<scalar_t>(params, epilogue, block, first + k, p, q));
      });
    *to = from_acc<scalar_t>(y[0]);
  }

  if (moments.to == nullptr) return;
  const uint32_t index = params.by_k_blocks.div(blockIdx.x);  // fprop has one class
  const int64_t tile =
      index - (block.n * (static_cast<int64_t>(params.by_groups.divisor) - 1) + block.group) *
                  gather_image_tiles(params);
  block_moments<(channels_last ? Tile::BLOCK_K < 8 ? Tile::BLOCK_K : 8 : 1), 1, scalar_t>(
      filters, Tile::BLOCK_PIX, threadIdx.x, Tile::THREADS,
      [&](int k, int i) -> const scalar_t* {
        const int p = block.p0 + (i >> params.tile_q_log2);
        const int q = block.q0 + (i & (params.tile_q - 1));
        if (p >= axis_h.outputs || q >= axis_w.outputs) return nullptr;
        return out_plane + p * params.out_stride_h + q * params.out_stride_w +
               static_cast<int64_t>(first + k) * params.out_stride_k;
      },
      [&](int k) { return moments.to + static_cast<int64_t>(first + k) * moments.tiles + tile; });
}

}  // namespace fastconv::cuda
