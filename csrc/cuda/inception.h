// What the launchers of the inception module share: an instance's shape, what the host computes for
// it (inception.cu), and the launchers by template parameters, each compiled in one of
// inception_{f16,f32,tf32x3}.cu.
#pragma once
#include "inception_algorithm.h"
#include "inception_fprop.cuh"

namespace fastconv::cuda {

// One kernel instance, as far as the host needs to know it.
struct InceptionShape {
  Layout layout;
  GemmMath math;
  int scalar_bytes;
  int block_m, block_n, block_k, slices;
  int vec_x, vec_w;  // elements per copy

  bool nhwc() const { return layout == Layout::kNHWC; }
  int block_pixels() const { return nhwc() ? block_m : block_n; }
  int block_channels() const { return nhwc() ? block_n : block_m; }
};

std::string inception_refusal(const InceptionShape&, const InceptionCall&);
double inception_cost(const InceptionShape&, const InceptionCall&, const Device&);
// Of the two grids, and their blocks.
struct InceptionGrids {
  InceptionParams pointwise, windows;
  int64_t pointwise_blocks, windows_blocks;
};
InceptionGrids inception_grids(const InceptionShape&, const InceptionCall&);

template <Layout layout_, class Tile_, int VEC_X_, int VEC_W_>
struct InceptionConfig {
  using Tile = Tile_;
  static constexpr int VEC_X = VEC_X_, VEC_W = VEC_W_;
  static constexpr InceptionShape shape{
      layout_,       Tile::MATH,    static_cast<int>(sizeof(typename Tile::scalar_t)),
      Tile::BLOCK_M, Tile::BLOCK_N, Tile::BLOCK_K,
      Tile::SLICES,  VEC_X,         VEC_W};
};

// Defined in inception_launch.h, for the files that compile it.
template <class Config>
int launch_inception(const InceptionCall& call, void* stream);

// --- the configurations -------------------------------------------------------------------------

// One image: tiles that fill the SMs, each gemm_k cut in slices. (NCHW's pixels, contiguous along
// gemm_n, need rows of 128 bytes.) Many: four warps to a tile of 64x64, which also takes any extent
// and alignment.
template <class scalar_t, GemmMath math>
using InceptionTile32 = SlicedTile<GemmTile<scalar_t, math, 32, 32, 32, 32, 3, 3>, 4>;
template <class scalar_t, GemmMath math>
using InceptionTile32x64 = SlicedTile<GemmTile<scalar_t, math, 32, 64, 32, 32, 3, 3>, 2>;
template <class scalar_t, GemmMath math>
using InceptionTile64 = SlicedTile<GemmTile<scalar_t, math, 64, 64, 32, 32, 4, 3>, 1>;

// X(name, dtype, products, configuration): the table and the instantiations are made of this list.
// `small_nchw`: the tile for one image there, `small` its name; `vec`: elements in 16 bytes.
#define FC_INCEPTION_DTYPE(X, dtype, products, name, mma, k, scalar_t, math, vec, small_nchw, \
                           small)                                                             \
  X(name "_nhwc_" mma "_32x32x" k "_slices4_vec" #vec, dtype, products,                       \
    (InceptionConfig<Layout::kNHWC, InceptionTile32<scalar_t, math>, vec, vec>))              \
  X(name "_nhwc_" mma "_64x64x" k "_vec" #vec, dtype, products,                               \
    (InceptionConfig<Layout::kNHWC, InceptionTile64<scalar_t, math>, vec, vec>))              \
  X(name "_nhwc_" mma "_64x64x" k, dtype, products,                                           \
    (InceptionConfig<Layout::kNHWC, InceptionTile64<scalar_t, math>, 1, 1>))                  \
  X(name "_nchw_" mma "_" small, dtype, products,                                             \
    (InceptionConfig<Layout::kNCHW, small_nchw<scalar_t, math>, 1, vec>))                     \
  X(name "_nchw_" mma "_64x64x" k, dtype, products,                                           \
    (InceptionConfig<Layout::kNCHW, InceptionTile64<scalar_t, math>, 1, 1>))
#define FC_INCEPTION_16(X)                                                                     \
  FC_INCEPTION_DTYPE(X, DType::kBFloat16, Products::kIeee, "bf16", "mma", "32", __nv_bfloat16, \
                     GemmMath::kMma16, 8, InceptionTile32x64, "32x64x32_slices2_vec8")         \
  FC_INCEPTION_DTYPE(X, DType::kFloat16, Products::kIeee, "f16", "mma", "32", __half,          \
                     GemmMath::kMma16, 8, InceptionTile32x64, "32x64x32_slices2_vec8")
#define FC_INCEPTION_32(X)                                                            \
  FC_INCEPTION_DTYPE(X, DType::kFloat32, Products::kTf32, "tf32", "mma", "16", float, \
                     GemmMath::kTf32, 4, InceptionTile32, "32x32x16_slices4_vec4")    \
  FC_INCEPTION_DTYPE(X, DType::kFloat32, Products::kIeee, "f32", "ffma", "16", float, \
                     GemmMath::kFma, 4, InceptionTile32, "32x32x16_slices4_vec4")

#define FC_INCEPTION_TF32X3(X)                                                            \
  FC_INCEPTION_DTYPE(X, DType::kFloat32, Products::kTf32x3, "tf32x3", "mma", "16", float, \
                     GemmMath::kTf32x3, 4, InceptionTile32, "32x32x16_slices4_vec4")

// A configuration in parentheses, so that its commas survive the macros.
template <class>
struct InceptionArgument;
template <class Config>
struct InceptionArgument<void(Config)> {
  using type = Config;
};
#define FC_INCEPTION_CONFIG(config) InceptionArgument<void config>::type
#define FC_INCEPTION_INSTANTIATE(name, dtype, products, config) \
  template int launch_inception<FC_INCEPTION_CONFIG(config)>(const InceptionCall&, void*);

}  // namespace fastconv::cuda
