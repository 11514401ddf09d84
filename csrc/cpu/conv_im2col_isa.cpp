// One task of the im2col product: a chunk of rows against a chunk of vecs over all depth (or one
// slice of it). Loop order: depth block (L1: one panel of depth_block x NR, 16 KiB), panels packed
// for the chunk (L2), rows in groups that stay in L2, panels, register tiles.
#include "conv_im2col_pack.h"
#include "epilogue_isa.h"
#include "gemm_micro.h"

namespace fastconv::cpu::FC_ISA {
namespace {

#if FC_VEC_BYTES == 64 && defined(__AVX512F__)
constexpr int kTileRows = 12;  // 12 row pointers and two indices fill the integer registers
#else
constexpr int kTileRows = GemmTile<float>::MR;
#endif
constexpr int kTileVectors = 2;

template <class T>
using RowKernel = void (*)(const RowTile<T>&);

template <class T, int MR, int NV>
void row_kernel(const RowTile<T>& tile) {
  gemm_rows<T, MR, NV>(tile);
}

template <class T>
struct RowKernelTable {
  RowKernel<T> at[kTileVectors][kTileRows];
};

#define FC_ROW_KERNELS(T, NV)                                        \
  {row_kernel<T, 1, NV>, row_kernel<T, 2, NV>, row_kernel<T, 3, NV>, \
   row_kernel<T, 4, NV>, row_kernel<T, 5, NV>, row_kernel<T, 6, NV> FC_MORE_ROW_KERNELS(T, NV)}
#if FC_VEC_BYTES == 64 && defined(__AVX512F__)
#define FC_MORE_ROW_KERNELS(T, NV)                                                           \
  , row_kernel<T, 7, NV>, row_kernel<T, 8, NV>, row_kernel<T, 9, NV>, row_kernel<T, 10, NV>, \
      row_kernel<T, 11, NV>, row_kernel<T, 12, NV>
#else
#define FC_MORE_ROW_KERNELS(T, NV)
#endif

template <class T>
constexpr RowKernelTable<T> kRowKernels = {{FC_ROW_KERNELS(T, 1), FC_ROW_KERNELS(T, 2)}};

// A chunk in flight: S is read, D is written (the same, or acc_t for partial sums).
template <class S, class D>
struct Chunk {
  using T = acc_t<S>;
  const Im2colGemm& g;
  const S *src, *other;
  D* dest;
  int64_t group, row, rows, vec, vecs;
  const T* ready;  // this depth block's panels
  T *panels, *packed, *acc, *temp, *row_bias, *vec_bias;
  S* zeros;
  const T** table;
  int64_t *row_offset, *vec_offset, *depth_offset;
  int64_t acc_ld, table_ld, row_step;
};

constexpr int64_t kNotUniform = INT64_MIN;

template <class S, class D>
void destination_offsets(Chunk<S, D>& c) {
  const Im2colGemm& g = c.g;
  const auto channels = [&](int64_t first, int64_t count, int64_t* out) {
    const int64_t step = g.kind == Im2colKind::kWgrad ? g.dest.n : g.dest.c;
    for (int64_t i = 0; i < count; ++i) out[i] = (first + i) * step;
  };
  if (g.kind == Im2colKind::kDown) {
    pixel_offsets(g, g.dest, c.row, c.row + c.rows, c.row_offset);
    channels(c.vec, c.vecs, c.vec_offset);
  } else {
    channels(c.row, c.rows, c.row_offset);
    if (g.kind == Im2colKind::kAcross) {
      pixel_offsets(g, g.dest, c.vec, c.vec + c.vecs, c.vec_offset);
    } else {
      for (int64_t j = 0; j < c.vecs; ++j) {
        const int64_t index = c.vec + j;
        const int64_t channel = g.tap_inner ? index / g.taps : index % g.channels;
        const int64_t tap = g.tap_inner ? index % g.taps : index / g.channels;
        c.vec_offset[j] = channel * g.dest.c + tap_at(g, g.dest.s, tap).filter;
      }
    }
  }
  c.row_step = c.rows > 1 ? c.row_offset[1] - c.row_offset[0] : 0;
  for (int64_t i = 1; i < c.rows; ++i)
    if (c.row_offset[i] - c.row_offset[i - 1] != c.row_step) c.row_step = kNotUniform;
}

template <class S, class D>
void load_bias(Chunk<S, D>& c, int64_t group) {
  const Im2colGemm& g = c.g;
  const bool down = g.kind == Im2colKind::kDown;
  const int64_t first = group * g.filters + (down ? c.vec : c.row);
  const int64_t count = down ? c.vecs : c.rows;
  auto* out = down ? c.vec_bias : c.row_bias;
  for (int64_t i = 0; i < count; ++i) out[i] = to_acc(static_cast<const S*>(g.bias)[first + i]);
  if (down)
    for (int64_t i = count; i < count + kMaxColumns; ++i) out[i] = 0;
}

template <class S, class D>
void prepare_rows(Chunk<S, D>& c, const Im2colDepthBlock& block) {
  using T = acc_t<S>;
  const Im2colGemm& g = c.g;
  const int64_t depth = block.segments * block.length;
  if constexpr (SameType<S, T>::value) {
    if (g.rows_direct) {
      if (g.kind == Im2colKind::kDown) {
        point_at_pixels(g, c.src, static_cast<const S*>(c.zeros), c.row, c.rows, block, c.table,
                        c.table_ld);
      } else if (g.kind == Im2colKind::kAcross) {
        for (int64_t i = 0; i < c.rows; ++i)
          c.table[i] = c.other + (c.row + i) * g.other.n + block.begin;
      } else {
        for (int64_t s = 0; s < block.segments; ++s) {
          int64_t at;
          pixel_offsets(g, g.other, block.begin + s * block.length,
                        block.begin + s * block.length + 1, &at);
          for (int64_t i = 0; i < c.rows; ++i)
            c.table[s * c.table_ld + i] = c.other + at + (c.row + i) * g.other.c;
        }
      }
      return;
    }
  }
  if (g.kind == Im2colKind::kAcross && g.packed) {
    const auto* base =
        reinterpret_cast<const T*>(g.packed) + (c.group * g.depth + block.begin) * g.rows;
    for (int64_t i = 0; i < c.rows; ++i) c.table[i] = base + (c.row + i) * depth;
    return;
  }
  if (g.kind == Im2colKind::kDown) {
    pack_pixel_rows(g, c.src, c.row, c.rows, block, c.packed, depth);
  } else {
    const bool across = g.kind == Im2colKind::kAcross;
    const int64_t step = across ? g.other.n : g.other.c;
    if (across)
      weight_offsets(g, block.begin, block.begin + depth, c.depth_offset);
    else
      pixel_offsets(g, g.other, block.begin, block.begin + depth, c.depth_offset);
    pack_rows(c.other + c.row * step, step, c.rows, c.depth_offset, depth, c.packed, depth);
  }
  for (int64_t i = 0; i < c.rows; ++i) c.table[i] = c.packed + i * depth;
}

template <class S, class D>
void prepare_panels(Chunk<S, D>& c, const Im2colDepthBlock& block) {
  const Im2colGemm& g = c.g;
  constexpr int lanes = Simd<acc_t<S>>::lanes, NR = kTileVectors * lanes;
  const int64_t depth = block.segments * block.length, end = block.begin + depth;
  c.ready = c.panels;
  if (g.kind == Im2colKind::kDown && g.packed) {
    c.ready = reinterpret_cast<const acc_t<S>*>(g.packed) +
              (c.group * g.depth + block.begin) * g.packed_columns(lanes) + c.vec * depth;
    return;
  }
  if (g.kind == Im2colKind::kDown) weight_offsets(g, block.begin, end, c.depth_offset);
  if (g.kind == Im2colKind::kAcross &&
      pack_sampled_panels(g, c.src, c.vec, c.vecs, lanes, NR, block.begin, end, c.panels))
    return;
  for (int64_t j = 0; j < c.vecs; j += NR) {
    const int64_t n = im2col_min(NR, c.vecs - j), width = n <= lanes ? lanes : NR;
    auto* panel = c.panels + j * depth;
    if (g.kind == Im2colKind::kAcross)
      pack_pixel_panel(g, c.src, c.vec + j, n, width, block.begin, end, panel);
    else if (g.kind == Im2colKind::kDown)
      pack_weight_panel(c.other + (c.vec + j) * g.other.n, g.other.n, n, width, c.depth_offset,
                        depth, panel);
    else
      pack_patch_panel(g, c.src, c.vec + j, n, width, block.begin, end, panel, c.temp);
  }
}

// acc columns [j, end) of every row to the destination, in runs of constant step.
template <class S, class D>
void store_columns(const Chunk<S, D>& c, const Finish<D>& finish, int64_t j, int64_t end) {
  finish.early(c.acc + j, c.acc_ld, c.rows, end - j);
  while (j < end) {
    int64_t e = j + 1;
    const int64_t step = e < end ? c.vec_offset[e] - c.vec_offset[j] : 1;
    while (e < end && c.vec_offset[e] - c.vec_offset[e - 1] == step) ++e;
    for (int64_t i = 0; i < c.rows; ++i) {
      D* to = c.dest + c.row_offset[i] + c.vec_offset[j];
      auto* from = c.acc + i * c.acc_ld + j;
      if (!finish.plain)
        finish.store(from, to, step, e - j);
      else if (step == 1)
        for (int64_t k = 0; k < e - j; ++k) from_acc(from[k], to + k);
      else
        for (int64_t k = 0; k < e - j; ++k) from_acc(from[k], to + k * step);
    }
    j = e;
  }
}

template <class S, class D>
void run_chunk(Chunk<S, D>& c, int64_t first_block, int64_t last_block) {
  using T = acc_t<S>;
  const Im2colGemm& g = c.g;
  constexpr int lanes = Simd<T>::lanes, NR = kTileVectors * lanes;
  const bool single = last_block - first_block == 1;
  const Finish<D> finish(g.epilogue, g.dest.data);
  // A panel whose tiles can be written where they belong; the others pass through acc.
  const auto direct = [&](int64_t j) {
    if constexpr (SameType<D, T>::value) {
      if (!single || c.row_step == kNotUniform) return false;
      const int64_t n = im2col_min(NR, c.vecs - j);
      if (n % lanes != 0) return false;
      for (int64_t k = 1; k < n; ++k)
        if (c.vec_offset[j + k] != c.vec_offset[j] + k) return false;
      return true;
    }
    return false;
  };
  const int64_t tiles_of_group = im2col_ceil(g.row_group, kTileRows);
  const int64_t tiles = im2col_ceil(c.rows, kTileRows);
  for (int64_t b = first_block; b < last_block; ++b) {
    const Im2colDepthBlock block = im2col_depth_block(g, b);
    prepare_panels(c, block);
    prepare_rows(c, block);
    const int64_t depth = block.segments * block.length;
    const bool in_place = g.rows_direct && SameType<S, T>::value;
    RowTile<T> tile;
    tile.rows_ld = c.table_ld;
    tile.segments = in_place ? block.segments : 1;
    tile.length = in_place ? block.length : depth;
    tile.accumulate = b > first_block;
    const bool bias = g.bias && b + 1 == last_block;
    for (int64_t t0 = 0; t0 < tiles; t0 += tiles_of_group) {
      const int64_t t1 = im2col_min(tiles, t0 + tiles_of_group);
      for (int64_t j = 0; j < c.vecs; j += NR) {
        const int vectors = c.vecs - j <= lanes ? 1 : 2;
        tile.b = c.ready + j * depth;
        tile.vec_bias = bias && g.kind == Im2colKind::kDown ? c.vec_bias + j : nullptr;
        const bool to_dest = direct(j);
        for (int64_t t = t0; t < t1; ++t) {
          // Tiles of nearly equal height: a last tile of one or two rows would run at latency.
          const int64_t i = t * c.rows / tiles, height = (t + 1) * c.rows / tiles - i;
          tile.rows = c.table + i;
          tile.next_rows =
              c.table + im2col_min(t + 1 < t1 ? i + height : t0 * c.rows / tiles, c.rows - height);
          if constexpr (SameType<D, T>::value) {
            tile.c =
                to_dest ? c.dest + c.row_offset[i] + c.vec_offset[j] : c.acc + i * c.acc_ld + j;
          } else {
            tile.c = c.acc + i * c.acc_ld + j;
          }
          tile.ldc = to_dest ? c.row_step : c.acc_ld;
          tile.row_bias = bias && g.kind != Im2colKind::kDown ? c.row_bias + i : nullptr;
          kRowKernels<T>.at[vectors - 1][height - 1](tile);
        }
        if constexpr (SameType<D, T>::value) {
          if (!to_dest || finish.plain) continue;
          const int64_t i0 = t0 * c.rows / tiles, i1 = t1 * c.rows / tiles;
          finish.in_place(c.dest + c.row_offset[i0] + c.vec_offset[j], c.row_step, i1 - i0,
                          im2col_min(NR, c.vecs - j));
        }
      }
    }
  }
  for (int64_t j = 0; j < c.vecs;) {
    if (direct(j)) {
      j += NR;
      continue;
    }
    int64_t e = j + NR;
    while (e < c.vecs && !direct(e)) e += NR;
    e = im2col_min(e, c.vecs);
    store_columns(c, finish, j, e);
    j = e;
  }
}

template <class S, class D>
Chunk<S, D> make_chunk(const Im2colGemm& g, int64_t group, int64_t row_index, int64_t vec_index,
                       char* scratch) {
  using T = acc_t<S>;
  constexpr int NR = kTileVectors * Simd<T>::lanes;
  const Im2colScratch& l = g.scratch;
  Chunk<S, D> c{g};
  c.group = group;
  c.src = reinterpret_cast<const S*>(g.gather.data) + group * g.gather.group;
  c.other = reinterpret_cast<const S*>(g.other.data) + group * g.other.group;
  c.dest = reinterpret_cast<D*>(g.dest.data) + group * g.dest.group;
  c.row = row_index * g.row_chunk;
  c.rows = im2col_min(g.row_chunk, g.rows - c.row);
  c.vec = vec_index * g.vec_chunk;
  c.vecs = im2col_min(g.vec_chunk, g.vecs - c.vec);
  c.panels = reinterpret_cast<T*>(scratch + l.panels);
  c.packed = reinterpret_cast<T*>(scratch + l.rows);
  c.acc = reinterpret_cast<T*>(scratch + l.acc);
  c.temp = reinterpret_cast<T*>(scratch + l.temp);
  c.row_bias = c.vec_bias = reinterpret_cast<T*>(scratch + l.bias);
  c.zeros = reinterpret_cast<S*>(scratch + l.zeros);
  c.table = reinterpret_cast<const T**>(scratch + l.table);
  c.row_offset = reinterpret_cast<int64_t*>(scratch + l.row_offset);
  c.vec_offset = reinterpret_cast<int64_t*>(scratch + l.vec_offset);
  c.depth_offset = reinterpret_cast<int64_t*>(scratch + l.depth_offset);
  c.acc_ld = im2col_ceil(c.vecs, NR) * NR;
  c.table_ld = c.rows;
  return c;
}

// Of a whole chunk of kDown, which was stored and is still in L2.
template <class S>
void chunk_moments(const Chunk<S, S>& c, int64_t block) {
  MomentsPiece piece{nullptr, c.vecs, c.g.dest.c, {1, 1, 0}, {}};
  for (int64_t i = 0; i < c.rows; i += piece.extent[2]) {  // runs of constant step
    const int64_t step = i + 1 < c.rows ? c.row_offset[i + 1] - c.row_offset[i] : 1;
    int64_t end = i + 1;
    while (end < c.rows && c.row_offset[end] - c.row_offset[end - 1] == step) ++end;
    piece.y = c.dest + c.row_offset[i] + c.vec_offset[0];
    piece.extent[2] = end - i;
    piece.step[2] = step;
    add_moments<S>(piece, c.g.moments, block, c.group * c.g.filters + c.vec, i);
  }
}

template <class S>
void run_task(const Im2colGemm& g, int64_t task, char* scratch) {
  using T = acc_t<S>;
  // Vec chunks run fastest: neighbouring tasks share their rows.
  const int64_t vec_index = task % g.vec_chunks, row_index = task / g.vec_chunks % g.row_chunks;
  task /= g.vec_chunks * g.row_chunks;
  const int64_t slice = task % g.slices, group = task / g.slices;
  const int64_t first = slice * g.depth_blocks / g.slices;
  const int64_t last = (slice + 1) * g.depth_blocks / g.slices;
  if (g.slices > 1) {
    auto c = make_chunk<S, T>(g, group, row_index, vec_index, scratch);
    c.dest = reinterpret_cast<T*>(g.partial) + (slice * g.groups + group) * g.rows * g.vecs;
    for (int64_t i = 0; i < c.rows; ++i) c.row_offset[i] = (c.row + i) * g.vecs;
    for (int64_t j = 0; j < c.vecs; ++j) c.vec_offset[j] = c.vec + j;
    c.row_step = g.vecs;
    run_chunk(c, first, last);
    return;
  }
  auto c = make_chunk<S, S>(g, group, row_index, vec_index, scratch);
  if (g.kind == Im2colKind::kDown && g.rows_direct)
    std::memset(static_cast<void*>(c.zeros), 0,
                static_cast<size_t>(g.scratch.depth_cap) * sizeof(S));
  destination_offsets(c);
  if (g.bias) load_bias(c, group);
  run_chunk(c, first, last);
  if (g.moments.K > 0) chunk_moments(c, row_index);
}

template <class S>
void pack(const Im2colGemm& g, int64_t task, char* scratch) {
  using T = acc_t<S>;
  constexpr int lanes = Simd<T>::lanes, NR = kTileVectors * lanes;
  static_assert(kIm2colPackChunk % NR == 0, "panels do not straddle packing tasks");
  const int64_t first = task % g.filter_chunks() * kIm2colPackChunk;
  task /= g.filter_chunks();
  const int64_t group = task / g.depth_blocks;
  const Im2colDepthBlock block = im2col_depth_block(g, task % g.depth_blocks);
  const int64_t depth = block.segments * block.length;
  const int64_t count = im2col_min(kIm2colPackChunk, g.filters - first);
  const S* src = reinterpret_cast<const S*>(g.other.data) + group * g.other.group;
  auto* offset = reinterpret_cast<int64_t*>(scratch + g.scratch.depth_offset);
  weight_offsets(g, block.begin, block.begin + depth, offset);
  T* out = reinterpret_cast<T*>(g.packed);
  if (g.kind == Im2colKind::kAcross) {
    pack_rows(src + first * g.other.n, g.other.n, count, offset, depth,
              out + (group * g.depth + block.begin) * g.rows + first * depth, depth);
    return;
  }
  out += (group * g.depth + block.begin) * g.packed_columns(lanes);
  for (int64_t j = first; j < first + count; j += NR) {
    const int64_t n = im2col_min(NR, g.vecs - j);
    pack_weight_panel(src + j * g.other.n, g.other.n, n, n <= lanes ? lanes : NR, offset, depth,
                      out + j * depth);
  }
}

template <class S>
void reduce(const Im2colGemm& g, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  const int64_t total = g.groups * g.rows * g.vecs;
  const T* partial = reinterpret_cast<const T*>(g.partial);
  bool dense = g.channels == 1 || g.dest.c == (g.tap_inner ? g.taps : 1);
  TapWalk order(g, g.dest.s, 0);
  for (int64_t t = 0; t < g.taps; ++t, order.next())
    dense = dense && order.tap().filter == (g.tap_inner ? t : t * g.channels);
  for (int64_t row = begin; row < end; ++row) {  // one filter of one group
    S* to =
        reinterpret_cast<S*>(g.dest.data) + row / g.rows * g.dest.group + row % g.rows * g.dest.n;
    const T* from = partial + row * g.vecs;
    const auto sum = [&](int64_t j) {
      T total_of = from[j];
      for (int64_t s = 1; s < g.slices; ++s) total_of += from[s * total + j];
      return total_of;
    };
    if (dense) {
      for (int64_t j = 0; j < g.vecs; ++j) from_acc(sum(j), to + j);
      continue;
    }
    TapWalk walk(g, g.dest.s, 0);
    for (int64_t t = 0; t < g.taps; ++t, walk.next()) {
      S* at = to + walk.tap().filter;
      for (int64_t c = 0; c < g.channels; ++c)
        from_acc(sum(g.tap_inner ? c * g.taps + t : t * g.channels + c), at + c * g.dest.c);
    }
  }
}

}  // namespace

extern const Im2colKernels im2col_kernels;
const Im2colKernels im2col_kernels = {
    {Simd<float>::lanes, Simd<double>::lanes},
    kTileRows,
    kTileVectors,
    {run_task<float>, FC_FP64(run_task<double>), run_task<bf16>, run_task<f16>},
    {pack<float>, FC_FP64(pack<double>), pack<bf16>, pack<f16>},
    {reduce<float>, FC_FP64(reduce<double>), reduce<bf16>, reduce<f16>},
};

}  // namespace fastconv::cpu::FC_ISA
