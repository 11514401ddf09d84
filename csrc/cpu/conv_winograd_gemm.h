// The products of the transformed tiles: c[i][j] (+)= sum_k a[i*RS + k*KS] * b[k*NR + j]. As
// gemm_micro, but a is not packed: with its strides known at compile time all broadcasts address
// one pointer, and the transforms store whole vectors of channels instead of interleaved rows.
#pragma once
#include "conv_winograd_vector.h"
#include "gemm_micro.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A, int MR, int RS, int KS>
__attribute__((noinline)) void product_rows(int64_t gemm_k, const A* __restrict__ a,
                                            const A* __restrict__ b, A* __restrict__ c, int64_t ldc,
                                            bool accumulate) {
  using vec = typename Simd<A>::vec;
  constexpr int lanes = Simd<A>::lanes, NV = GemmTile<A>::NV, NR = GemmTile<A>::NR;
  vec acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = vec{};
  for (int64_t k = 0; k < gemm_k; ++k) {
    vec bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = vload(b + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vec av = vsplat(a[i * RS]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += av * bv[v];
    }
    a += KS;
    b += NR;
  }
  // Blocks are summed from zero and then added up: the error grows with the length of a block and
  // the number of blocks, not with their product.
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      A* to = c + i * ldc + v * lanes;
      vstore(to, accumulate ? vload(to) + acc[i][v] : acc[i][v]);
    }
}

template <class A>
using ProductFn = void (*)(int64_t, const A*, const A*, A*, int64_t, bool);

// Kernels of 1 .. MR rows; rows are dealt out evenly, since few rows do not fill the pipelines.
template <class A, int RS, int KS>
struct Products {
  static constexpr int MR = GemmTile<A>::MR;
  ProductFn<A> rows[MR];
};
template <class A, int RS, int KS, int... I>
constexpr Products<A, RS, KS> make_products(Indices<I...>) {
  return {{&product_rows<A, I + 1, RS, KS>...}};
}
template <class A, int RS, int KS>
constexpr Products<A, RS, KS> kProducts =
    make_products<A, RS, KS>(typename IndicesTo<GemmTile<A>::MR>::type{});

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
