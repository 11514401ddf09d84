// Register tiles of the direct convolution. Both read the staged input at row[i] + col[j]:
//   panel_micro: c[i][v] (+)= sum_j splat(a[row[i] + col[j]]) * b[j][v]     v: vectors of channels
//   vector_micro: c[i][n] (+)= sum_j a[row[i] + col[j] ...] * b[j][n]      a, c: vectors
// With rows = outputs and columns = (ci, tap) they are fprop and dgrad; with rows = (ci, tap) and
// columns = outputs they are wgrad.
#pragma once
#include "conv_direct.h"
#include "simd.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A>
using PanelFn = void (*)(int64_t depth, const A* a, const int32_t* row, const int32_t* col,
                         const A* b, A* c, bool accumulate);

// b: [depth][kPanelVectors * lanes], c: [MR][kPanelVectors * lanes]
template <class A, int MR>
void panel_micro(int64_t depth, const A* __restrict__ a, const int32_t* __restrict__ row,
                 const int32_t* __restrict__ col, const A* __restrict__ b, A* __restrict__ c,
                 bool accumulate) {
  using vec = typename Simd<A>::vec;
  constexpr int lanes = Simd<A>::lanes, NV = kPanelVectors, NR = NV * lanes;
  const A* ar[MR];
  vec acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    ar[i] = a + row[i];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = accumulate ? vload(c + i * NR + v * lanes) : vec{};
  }
  for (int64_t j = 0; j < depth; ++j) {
    const int64_t o = col[j];
    vec bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = vload(b + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vec av = vsplat(ar[i][o]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += av * bv[v];
    }
    b += NR;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vstore(c + i * NR + v * lanes, acc[i][v]);
}

template <class A>
FC_INLINE PanelFn<A> panel_fn(int64_t rows) {
  constexpr PanelFn<A> fns[kPanelRows + 1] = {
      nullptr,           panel_micro<A, 1>, panel_micro<A, 2>, panel_micro<A, 3>,
      panel_micro<A, 4>, panel_micro<A, 5>, panel_micro<A, 6>};
  return fns[rows];
}

// Calls fn(first, count) on nearly equal pieces of at most `most`: 7 rows are 4 + 3, not 6 + 1.
template <class F>
FC_INLINE void balanced(int64_t total, int64_t most, const F& fn) {
  const int64_t pieces = (total + most - 1) / most;
  int64_t begin = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t end = total * (i + 1) / pieces;
    fn(begin, end - begin);
    begin = end;
  }
}

enum class Init : int { kZero, kSplat, kVector, kAccumulate };

template <class A>
struct VectorArgs {
  int64_t depth;
  const A* a;
  const int32_t* row;
  const int32_t* col;
  const A* b;
  int64_t b_j, b_n;  // strides of b
  A* c;
  const int64_t* c_row;
  int64_t c_n;
  Init init;
  const A* init_from;  // kSplat: [NB]; kVector: one vector
  int live;            // kMasked: how many lanes of a count
};

template <class A>
using VectorFn = void (*)(const VectorArgs<A>&);

enum class Operand : int { kSplat, kVector, kMasked };

template <class A, int MR, int NB, Operand kB>
void vector_micro(const VectorArgs<A>& g) {
  using vec = typename Simd<A>::vec;
  const A* ar[MR];
  vec acc[MR][NB];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    ar[i] = g.a + g.row[i];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      if (g.init == Init::kZero)
        acc[i][n] = vec{};
      else if (g.init == Init::kSplat)
        acc[i][n] = vsplat(g.init_from[n]);
      else if (g.init == Init::kVector)
        acc[i][n] = vload(g.init_from);
      else
        acc[i][n] = vload(g.c + g.c_row[i] + n * g.c_n);
    }
  }
  // A masked lane lies past the row's end and holds a neighbour, perhaps an infinity: its b is 0,
  // but only a zero on both sides gives 0.
  const typename Simd<A>::mask live = kB == Operand::kMasked ? vfirst<A>(g.live) : vfirst<A>(0);
  const A* b = g.b;
  const int32_t* col = g.col;
  for (int64_t j = g.depth; j > 0; --j) {
    const int64_t o = *col++;
    if constexpr (NB <= MR) {
      vec bv[NB];
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n)
        bv[n] = kB == Operand::kSplat ? vsplat(b[n]) : vload(b + n * g.b_n);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        vec av = vload(ar[i] + o);
        if (kB == Operand::kMasked) av = vkeep<A>(av, live);
#pragma GCC unroll 16
        for (int n = 0; n < NB; ++n) acc[i][n] += av * bv[n];
      }
    } else {
      vec av[MR];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        av[i] = vload(ar[i] + o);
        if (kB == Operand::kMasked) av[i] = vkeep<A>(av[i], live);
      }
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n) {
        const vec bv = kB == Operand::kSplat ? vsplat(b[n]) : vload(b + n * g.b_n);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) acc[i][n] += av[i] * bv;
      }
    }
    b += g.b_j;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) vstore(g.c + g.c_row[i] + n * g.c_n, acc[i][n]);
}

// Most rows of a tile with nb columns: nb * rows <= 12 accumulators, and 9 row pointers at most
// (16 general registers; 9 also covers a 3x3 filter's gradient in one pass).
FC_INLINE int64_t vector_rows(int64_t nb) {
  constexpr int most[kMaxRowOutputs + 1] = {0, 9, 6, 4, 3, 2, 2};
  return most[nb];
}

template <class A, int NB, Operand kB>
FC_INLINE VectorFn<A> vector_fn_of(int64_t rows) {
  constexpr VectorFn<A> low[4] = {nullptr, vector_micro<A, 1, NB, kB>, vector_micro<A, 2, NB, kB>,
                                  NB <= 4 ? vector_micro < A, NB <= 4 ? 3 : 1, NB, kB > : nullptr};
  if (rows < 4) return low[rows];
  if constexpr (NB <= 3) {
    if (rows == 4) return vector_micro<A, 4, NB, kB>;
  }
  if constexpr (NB <= 2) {
    if (rows == 5) return vector_micro<A, 5, NB, kB>;
    if (rows == 6) return vector_micro<A, 6, NB, kB>;
  }
  if constexpr (NB == 1) {
    if (rows == 7) return vector_micro<A, 7, NB, kB>;
    if (rows == 8) return vector_micro<A, 8, NB, kB>;
    if (rows == 9) return vector_micro<A, 9, NB, kB>;
  }
  return nullptr;
}

template <class A, Operand kB>
FC_INLINE VectorFn<A> vector_fn(int64_t rows, int64_t nb) {
  switch (nb) {
    case 1: return vector_fn_of<A, 1, kB>(rows);
    case 2: return vector_fn_of<A, 2, kB>(rows);
    case 3: return vector_fn_of<A, 3, kB>(rows);
    case 4: return vector_fn_of<A, 4, kB>(rows);
    case 5: return vector_fn_of<A, 5, kB>(rows);
    default: return vector_fn_of<A, 6, kB>(rows);
  }
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
