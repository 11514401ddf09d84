// y[n,k,o,p,q] = b[k] + sum over c,t,r,s of x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s] for
// images of one to four channels in NHWC, a network's stem: x's rows stay in shared memory, where
// windows of them, which overlap, are the column matrix.
//
// In NHWC the S C elements of x under one row of taps are neighbours: a window of the row, that of
// the next output begins stride * C elements further on. So
//   y [pixels, K] = sum over t, r of windows [pixels, S C] * w[:, t, r] [S C, K]
// gemm_k has the windows of all t, r behind one another, each filled up to chunks of 16 bytes:
// 7x7x3 takes 7 * 24 = 168, by steps of 16 then 176, for 147. A window may begin an element early,
// where an odd padding has its first tap at the second half of a word.
//
// Mapping: persistent blocks of four warps, each with the weights of 64 filters. A tile is 64
// FRAGMENTS pixels of a plane, in units of eight side by side. Its rows come by cp.async while the
// tile before is multiplied. A lane's part of an A fragment of mma.sync is a word of one window: a
// load of 32 bits at the pixel's place plus the chunk's, which a table has, and a mask, for
// elements behind the window are another pixel's, and an infinity there times a weight of zero
// would be a NaN. Where windows begin at odd elements of 16 bits (stride * C odd), odd pixels read
// a second copy of the rows, shifted by an element. B comes by ldmatrix. Sums go from registers to
// memory; of 16-bit types the four lanes of a row exchange theirs for 16 bytes each.
//
// bf16, fp16; fp32 by TF32, one product or three; accumulation in fp32. Any stride, padding and
// filter that shared memory holds, dilation but along W; one group. For 3x224x224 > 64, 7x7 / 2 of
// 32 images in 16 bits:
//   bytes: 9.6 MB of x and 51.4 MB of y, 15 us of DRAM at 4 TB/s
//   FLOPs: 9.0e9 with what fills up, 17 us of mma.sync at 0.63 of wgmma's rate: about equal; on an
//          A100 41 us of DRAM and 33 of tensor cores
//   shared memory, 128 bytes a cycle, for a warp's step of 64 pixels (32 HMMA, 51 cycles): 16 of A,
//          16 of B, 2 of the table. With 32 pixels 26 for 25: the wide tile is the usual one
//   instructions of that step, as nvcc 13.0 compiles it for sm_90a: 96 (18 LDS, 4 LDSM, 16 masks,
//          20 of addresses); of 32 pixels 57 for 16 HMMA, where im2col, which fetches three
//          channels one by one, has 538
// Banks: a fragment's words are (stride * C / 2) g + t: no two in a bank for 7x7x3 / 2 (3 g + t,
// what overlaps is the same word), 4 channels at strides 1 and 2, any channels at stride 1; two to
// a bank for 3 channels at strides 3 and 4, and in fp32 (6 g + t, 8 g + t) at stride 2.
//
// Statistics of y per tile, from what was stored (block_moments.cuh). Workspace: none but these.
// Deterministic: t, r, s, c ascending. Only fprop: gradients of an image are hardly ever asked for,
// and wgrad has the pixels as gemm_k. Speed: not measured on a GPU. Source: PTX ISA, "Matrix
// Fragments for mma.m16n8k16".
#pragma once
#include "detail/rows_stage.cuh"

namespace fastconv::cuda {

template <class Tile>
using RowsSums = float[Tile::FRAGMENTS][Tile::BLOCK_N / 8][4];

// acc = the tile's products. weights, table: this lane's places in them; window[u]: in `rows`, of
// this lane's pixel of the warp's unit u.
template <class Tile>
__device__ __forceinline__ void rows_multiply(RowsSums<Tile>& acc, const unsigned char* weights,
                                              const RowsChunk* table, const unsigned char* rows,
                                              const int (&window)[Tile::WARP_UNITS], int steps) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int COLUMNS = Tile::BLOCK_N / 8;
  constexpr bool SPLIT = Tile::MATH == GemmMath::kTf32x3;
#pragma unroll
  for (int i = 0; i < Tile::FRAGMENTS; ++i)
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.0f;
  RowsChunk next[2] = {table[0], table[4]};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const RowsChunk chunk[2] = {next[0], next[1]};
    table += 8;
    next[0] = table[0];
    next[1] = table[4];
    uint32_t b[COLUMNS / 2][4], small_b[COLUMNS / 2][4];
#pragma unroll
    for (int j = 0; j < COLUMNS / 2; ++j) {
      ldmatrix_x4(b[j], weights + j * (16 * 32));
      if constexpr (SPLIT) split_tf32(b[j], small_b[j]);
    }
    weights += Tile::STEP_BYTES;
#pragma unroll
    for (int i = 0; i < Tile::FRAGMENTS; ++i) {
      uint32_t a[4], small_a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowsChunk& c = chunk[e / 2];
        a[e] = *reinterpret_cast<const uint32_t*>(rows + window[2 * i + e % 2] + c.offset) & c.mask;
        if constexpr (Tile::MATH == GemmMath::kTf32) a[e] = to_tf32(__uint_as_float(a[e]));
      }
      if constexpr (SPLIT) split_tf32(a, small_a);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const int e = j % 2 * 2;
        const uint32_t pair[2] = {b[j / 2][e], b[j / 2][e + 1]};
        if constexpr (SPLIT) {
          // From zero at each step: see TensorCoreWarp.
          const uint32_t small[2] = {small_b[j / 2][e], small_b[j / 2][e + 1]};
          float sum[4] = {};
          mma_m16n8k8_tf32(sum, small_a, pair);
          mma_m16n8k8_tf32(sum, a, small);
          mma_m16n8k8_tf32(sum, a, pair);
#pragma unroll
          for (int k = 0; k < 4; ++k) acc[i][j][k] += sum[k];
        } else if constexpr (Tile::MATH == GemmMath::kTf32) {
          mma_m16n8k8_tf32(acc[i][j], a, pair);
        } else {
          mma_m16n8k16<scalar_t>(acc[i][j], a, pair);
        }
      }
    }
  }
}

// The four lanes of a row have words j, of eight columns each, of which lane t gets all of word t.
__device__ __forceinline__ void rows_exchange(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const auto exchange = [](uint32_t& a, uint32_t& b, bool second, int distance) {
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, second ? a : b, distance);
    a = second ? got : a;
    b = second ? b : got;
  };
  // A transposition of 2 x 2 blocks: within them, then of them.
  exchange(v[0], v[1], odd, 1);
  exchange(v[2], v[3], odd, 1);
  exchange(v[0], v[2], upper, 2);
  exchange(v[1], v[3], upper, 2);
}

// Where pixel (row, column) of a plane of y is, of the tile's image and plane.
struct RowsOutput {
  int64_t plane;  // the plane's first pixel
  int rows, columns;
  __device__ __forceinline__ RowsOutput(const ConvRowsParams& p, const RowsPlace& place)
      : plane((static_cast<int64_t>(place.image) * p.out[0] + place.plane) * p.out[1] * p.out[2]),
        rows(p.out[1]),
        columns(p.out[2]) {}
  __device__ __forceinline__ bool has(int row, int column) const {
    return row < rows && column < columns;
  }
  __device__ __forceinline__ int64_t pixel(int row, int column) const {
    return plane + static_cast<int64_t>(row) * columns + column;
  }
};

// 32 columns, from n on, of one unit's pixels: acc[j] has columns 8 j + 2 t and the next one.
template <class Tile>
__device__ __forceinline__ void rows_store_part(const ConvRowsParams& p, float (&v)[8], int n,
                                                bool exists, int64_t pixel) {
  using scalar_t = typename Tile::scalar_t;
  const int t = threadIdx.x % 4;
  const auto column = [&](int j) { return n + 8 * j + 2 * t; };
  if (p.epilogue.any)
    apply_epilogue(p.epilogue, v, [&](float(&r)[8]) {
      const scalar_t* const from =
          static_cast<const scalar_t*>(p.epilogue.residual) + pixel * p.filters;
    // One by one: nobody adds to a stem's result where speed counts.
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = column(i / 2) + i % 2;
        if (exists && at < p.filters) r[i] = to_acc(from[at]);
      }
    });
  scalar_t* const to = static_cast<scalar_t*>(p.y) + pixel * p.y_pitch;
  if constexpr (sizeof(scalar_t) == 2) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const scalar_t pair[2] = {from_acc<scalar_t>(v[2 * j]), from_acc<scalar_t>(v[2 * j + 1])};
      memcpy(&words[j], pair, 4);
    }
    rows_exchange(words);
    const int first = n + 8 * t;
    if (!exists || first >= p.filters) return;
    if (p.vec8 && first + 8 <= p.filters) {
      *reinterpret_cast<uint4*>(to + first) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
      scalar_t each[8];
      memcpy(each, words, 16);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (first + e < p.filters) to[first + e] = each[e];
    }
  } else if (exists) {
    // The lanes of a row have 32 bytes side by side as they are.
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (p.vec8 && column(j) + 2 <= p.filters) {
        *reinterpret_cast<float2*>(to + column(j)) = make_float2(v[2 * j], v[2 * j + 1]);
      } else {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (column(j) + e < p.filters) to[column(j) + e] = v[2 * j + e];
      }
    }
  }
}

template <class Tile>
__device__ __forceinline__ void rows_store(const ConvRowsParams& p, const RowsPlace& place,
                                           const RowsSums<Tile>& acc, const float* bias, int n0) {
  const RowsOutput y(p, place);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int part = 0; part < Tile::BLOCK_N; part += 32) {
    float2 add[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      add[j] = *reinterpret_cast<const float2*>(bias + part + 8 * j + lane % 4 * 2);
#pragma unroll
    for (int u = 0; u < Tile::WARP_UNITS; ++u) {
      const RowsUnit unit = rows_unit(p, warp * Tile::WARP_UNITS + u);
      const int row = place.row + unit.row, column = place.column + unit.column + lane / 4;
      float v[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[2 * j] = acc[u / 2][part / 8 + j][u % 2 * 2] + add[j].x;
        v[2 * j + 1] = acc[u / 2][part / 8 + j][u % 2 * 2 + 1] + add[j].y;
      }
      rows_store_part<Tile>(p, v, n0 + part, y.has(row, column), y.pixel(row, column));
    }
  }
}

template <class Tile>
__device__ __forceinline__ void rows_moments(const ConvRowsParams& p, const RowsPlace& place,
                                             int tile, int n0) {
  using scalar_t = typename Tile::scalar_t;
  const RowsOutput y(p, place);
  const scalar_t* const stored = static_cast<const scalar_t*>(p.y) + n0;
  CountedMoment<float>* const to = p.moments.to + n0 * p.moments.tiles + tile;
  const auto leave = [&](auto vec) {
    block_moments<8, decltype(vec)::value, scalar_t>(
        min(Tile::BLOCK_N, p.filters - n0), Tile::BLOCK_M, static_cast<int>(threadIdx.x),
        Tile::NUM_THREADS,
        [&](int c, int i) -> const scalar_t* {
          const RowsUnit unit = rows_unit(p, i / 8);
          const int row = place.row + unit.row, column = place.column + unit.column + i % 8;
          return y.has(row, column) ? stored + y.pixel(row, column) * p.y_pitch + c : nullptr;
        },
        [&](int c) { return to + c * p.moments.tiles; });
  };
  if (p.vec8)
    leave(std::integral_constant<int, 8>());
  else
    leave(std::integral_constant<int, 1>());
}

// grid.x: part of the filters fastest; a part's blocks share the tiles.
template <class Tile>
__global__ void __launch_bounds__(Tile::NUM_THREADS, Tile::MIN_BLOCKS)
    conv_fprop_rows_kernel(const ConvRowsParams p) {
  using scalar_t = typename Tile::scalar_t;
  FC_DYN_SHARED(unsigned char, shared);
  RowsChunk* const table = reinterpret_cast<RowsChunk*>(shared + p.steps * Tile::STEP_BYTES);
  float* const bias = reinterpret_cast<float*>(table + (2 * p.steps + 2) * 4);
  unsigned char* const stages = reinterpret_cast<unsigned char*>(bias + Tile::BLOCK_N);

  const int n0 = static_cast<int>(blockIdx.x) % p.parts * Tile::BLOCK_N;
  const int next = static_cast<int>(gridDim.x) / p.parts;
  int tile = static_cast<int>(blockIdx.x) / p.parts;
  RowsPlace place = rows_place(p, tile);
  rows_stage<Tile>(p, place, stages);
  cp_async_commit();

  for (int i = threadIdx.x; i < p.steps * Tile::STEP_BYTES / 16; i += Tile::NUM_THREADS)
    reinterpret_cast<uint4*>(shared)[i] = make_uint4(0, 0, 0, 0);
  rows_fill_table<Tile>(p, table);
  if (threadIdx.x < Tile::BLOCK_N) {
    const int n = n0 + static_cast<int>(threadIdx.x);
    bias[threadIdx.x] =
        p.bias != nullptr && n < p.filters ? to_acc(static_cast<const scalar_t*>(p.bias)[n]) : 0.0f;
  }
  __syncthreads();
  rows_load_weights<Tile>(p, n0, shared);

  // The row of 16 bytes that this lane hands to ldmatrix: lanes 8 to 15 and 24 to 31 have the
  // second chunk, lanes 16 to 31 the second eight filters.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned char* const weights =
      shared + rows_weight_place<Tile>((lane & 7) + (lane & 16) / 2, (lane & 8) / 8 * Tile::CHUNK);
  int window[Tile::WARP_UNITS];
#pragma unroll
  for (int u = 0; u < Tile::WARP_UNITS; ++u) {
    constexpr int SIZE = static_cast<int>(sizeof(scalar_t));
    const RowsUnit unit = rows_unit(p, warp * Tile::WARP_UNITS + u);
    int begin = ((unit.column + lane / 4) * p.column_step + p.begin) * SIZE;
    // An odd pixel's, where pixels alternate.
    if (p.shifted != 0 && begin % 4 != 0) begin += p.shifted - SIZE;
    window[u] = unit.row * p.stride[1] * p.row_bytes + begin;
  }

  int stage = 0;
#pragma unroll 1
  while (tile < p.tiles) {
    unsigned char* const rows = stages + stage;
    cp_async_wait<0>();
    __syncthreads();  // these rows have come, nobody reads the others any more
    const int following = tile + next;
    const RowsPlace following_place = rows_place(p, min(following, p.tiles - 1));
    stage = p.stage_bytes - stage;
    if (following < p.tiles) rows_stage<Tile>(p, following_place, stages + stage);
    cp_async_commit();
    if (p.shifted != 0) {
      rows_shift<Tile>(p, rows);
      __syncthreads();
    }
    RowsSums<Tile> acc;
    rows_multiply<Tile>(acc, weights, table + lane % 4, rows, window, p.steps);
    rows_store<Tile>(p, place, acc, bias, n0);
    if (p.moments.to != nullptr) rows_moments<Tile>(p, place, tile, n0);
    tile = following;
    place = following_place;
  }
}

}  // namespace fastconv::cuda
