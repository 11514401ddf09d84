// What the launchers of im2col (conv_im2col*.cu) share: an instance's shape, the host's share of
// the address arithmetic, limits and costs (conv_im2col.cu), and the launchers by template
// parameters, each compiled in one of conv_im2col_{fprop,dgrad,wgrad}.cu.
#pragma once
#include <string>

#include "conv_algorithm.h"
#include "detail/gemm_conv_gather.cuh"

namespace fastconv::cuda {

// One kernel instance, as far as the host needs to know it.
struct Im2colShape {
  Direction direction;
  Layout layout;
  GemmMath math;
  int scalar_bytes;
  int block_m, block_n, block_k;
  int vec_data;    // elements per copy of the operand with pixels: x, or dy (of wgrad: dy)
  int vec_other;   // of w (of wgrad: x)
  bool tap_table;  // at most kMaskTaps taps; not in wgrad

  bool nhwc() const { return layout == Layout::kNHWC; }
};

std::string im2col_refusal(const Im2colShape&, const ConvProblem&);
int64_t im2col_workspace(const Im2colShape&, const ConvProblem&, const Device&);
int64_t im2col_stats_workspace(const ConvProblem&, const Device&);  // fprop
double im2col_cost(const Im2colShape&, const ConvProblem&, const Device&);
// fprop and dgrad, less the bias; also the grid's x.
ConvGatherParams im2col_gather_params(const Im2colShape&, const ConvCall&, int64_t* blocks);

// wgrad: the tiles of dw of one group, and the cut of gemm_k (N O P Q in tiles of block_k).
struct Im2colSplit {
  int64_t m_tiles, n_tiles;
  int64_t splits, split_tiles;  // SPLIT_K, tiles of gemm_k to each
};
Im2colSplit im2col_split(const Im2colShape&, const ConvProblem&, const Device&);

// All bases are aligned for the shape's copies.
bool im2col_aligned(const Im2colShape&, const ConvCall&);

// Tile: GemmTile; VEC_DATA, VEC_OTHER, TAP_TABLE: see Im2colShape. Fallback: the configuration that
// takes bases at any alignment, void where this one does.
template <Direction direction_, Layout layout_, class Tile_, int VEC_DATA_, int VEC_OTHER_,
          bool TAP_TABLE_ = false, class Fallback_ = void>
struct Im2colConfig {
  using Tile = Tile_;
  using Fallback = Fallback_;
  static constexpr int VEC_DATA = VEC_DATA_, VEC_OTHER = VEC_OTHER_;
  static constexpr bool TAP_TABLE = TAP_TABLE_ && direction_ != Direction::kWgrad;
  static constexpr Im2colShape shape{
      direction_,    layout_,
      Tile::MATH,    static_cast<int>(sizeof(typename Tile::scalar_t)),
      Tile::BLOCK_M, Tile::BLOCK_N,
      Tile::BLOCK_K, VEC_DATA,
      VEC_OTHER,     TAP_TABLE};
};

template <class Config>
int launch_conv_im2col(const ConvCall& call);

// --- the configurations -------------------------------------------------------------------------

// MMA tiles: 8 warps of 64x32, 8 or 4 of 32x32. FFMA: 4 warps, 8x8 or 8x4 accumulators to a
// thread. The element-wise gather of NCHW's pixels keeps registers in flight, and costs per
// multiply-add as 1/BLOCK_M: its large tile is narrow.
template <class scalar_t>
using Mma128 = GemmTile<scalar_t, GemmMath::kMma16, 128, 128, 64, 32, 4, 2>;
template <class scalar_t>
using Mma128x64 = GemmTile<scalar_t, GemmMath::kMma16, 128, 64, 32, 32, 4, 2>;
template <class scalar_t>
using Mma64 = GemmTile<scalar_t, GemmMath::kMma16, 64, 64, 32, 32, 4, 3>;
using Tf32Tile128 = GemmTile<float, GemmMath::kTf32, 128, 128, 64, 32, 4, 2>;
using Tf32Tile128x64 = GemmTile<float, GemmMath::kTf32, 128, 64, 32, 32, 4, 2>;
using Tf32Tile64 = GemmTile<float, GemmMath::kTf32, 64, 64, 32, 32, 4, 3>;
// Both parts of the operands are in registers beside the accumulators: the wide tile is too much.
using Tf32x3Tile128x64 = GemmTile<float, GemmMath::kTf32x3, 128, 64, 64, 32, 4, 2>;
using Tf32x3Tile64 = GemmTile<float, GemmMath::kTf32x3, 64, 64, 32, 32, 4, 3>;
using FmaTile128x64 = GemmTile<float, GemmMath::kFma, 128, 64, 32, 64, 4, 3>;
using FmaTile64 = GemmTile<float, GemmMath::kFma, 64, 64, 32, 32, 4, 3>;

template <Direction direction, class TileSmall>
using Im2colNhwc = Im2colConfig<direction, Layout::kNHWC, TileSmall, 1, 1>;
template <Direction direction, class Tile, class TileSmall, int VEC, bool TAP_TABLE = true>
using Im2colNhwcVec = Im2colConfig<direction, Layout::kNHWC, Tile, VEC, VEC, TAP_TABLE,
                                   Im2colNhwc<direction, TileSmall>>;
template <Direction direction, class TileSmall>
using Im2colNchw = Im2colConfig<direction, Layout::kNCHW, TileSmall, 1, 1>;
// The operand that is contiguous along gemm_k in NCHW (w of fprop, dy of wgrad) by vectors.
template <Direction direction, class Tile, class TileSmall, int VEC>
using Im2colNchwVec =
    Im2colConfig<direction, Layout::kNCHW, Tile, direction == Direction::kWgrad ? VEC : 1,
                 direction == Direction::kFprop ? VEC : 1, true, Im2colNchw<direction, TileSmall>>;

// X(name, dtype, products, configuration) for every instance of one direction `d` (a Direction),
// `dn` its name: the table and the explicit instantiations are both made of this list.
#define FC_IM2COL_16(X, d, dn, dtype, name, scalar_t)                                           \
  X(dn "_" name "_nhwc_mma_128x128x32_vec8", dtype, Products::kIeee,                            \
    (Im2colNhwcVec<d, Mma128<scalar_t>, Mma64<scalar_t>, 8>))                                   \
  X(dn "_" name "_nhwc_mma_64x64x32_vec8", dtype, Products::kIeee,                              \
    (Im2colNhwcVec<d, Mma64<scalar_t>, Mma64<scalar_t>, 8, false>))                             \
  X(dn "_" name "_nhwc_mma_64x64x32", dtype, Products::kIeee, (Im2colNhwc<d, Mma64<scalar_t>>)) \
  X(dn "_" name "_nchw_mma_128x64x32", dtype, Products::kIeee,                                  \
    (Im2colNchwVec<d, Mma128x64<scalar_t>, Mma64<scalar_t>, 8>))                                \
  X(dn "_" name "_nchw_mma_64x64x32", dtype, Products::kIeee, (Im2colNchw<d, Mma64<scalar_t>>))
#define FC_IM2COL_TF32(X, d, dn)                                                                 \
  X(dn "_tf32_nhwc_mma_128x128x16_vec4", DType::kFloat32, Products::kTf32,                       \
    (Im2colNhwcVec<d, Tf32Tile128, Tf32Tile64, 4>))                                              \
  X(dn "_tf32_nhwc_mma_64x64x16", DType::kFloat32, Products::kTf32, (Im2colNhwc<d, Tf32Tile64>)) \
  X(dn "_tf32_nchw_mma_128x64x16", DType::kFloat32, Products::kTf32,                             \
    (Im2colNchwVec<d, Tf32Tile128x64, Tf32Tile64, 4>))                                           \
  X(dn "_tf32_nchw_mma_64x64x16", DType::kFloat32, Products::kTf32, (Im2colNchw<d, Tf32Tile64>))
#define FC_IM2COL_TF32X3(X, d, dn)                                            \
  X(dn "_tf32x3_nhwc_mma_128x64x16_vec4", DType::kFloat32, Products::kTf32x3, \
    (Im2colNhwcVec<d, Tf32x3Tile128x64, Tf32x3Tile64, 4>))                    \
  X(dn "_tf32x3_nhwc_mma_64x64x16", DType::kFloat32, Products::kTf32x3,       \
    (Im2colNhwc<d, Tf32x3Tile64>))                                            \
  X(dn "_tf32x3_nchw_mma_128x64x16", DType::kFloat32, Products::kTf32x3,      \
    (Im2colNchwVec<d, Tf32x3Tile128x64, Tf32x3Tile64, 4>))                    \
  X(dn "_tf32x3_nchw_mma_64x64x16", DType::kFloat32, Products::kTf32x3,       \
    (Im2colNchw<d, Tf32x3Tile64>))
#define FC_IM2COL_F32(X, d, dn)                                                                 \
  X(dn "_f32_nhwc_ffma_128x64x16_vec4", DType::kFloat32, Products::kIeee,                       \
    (Im2colNhwcVec<d, FmaTile128x64, FmaTile64, 4>))                                            \
  X(dn "_f32_nhwc_ffma_64x64x16", DType::kFloat32, Products::kIeee, (Im2colNhwc<d, FmaTile64>)) \
  X(dn "_f32_nchw_ffma_128x64x16", DType::kFloat32, Products::kIeee,                            \
    (Im2colNchwVec<d, FmaTile128x64, FmaTile64, 4>))                                            \
  X(dn "_f32_nchw_ffma_64x64x16", DType::kFloat32, Products::kIeee, (Im2colNchw<d, FmaTile64>))
#define FC_IM2COL_INSTANCES(X, d, dn)                             \
  FC_IM2COL_16(X, d, dn, DType::kBFloat16, "bf16", __nv_bfloat16) \
  FC_IM2COL_16(X, d, dn, DType::kFloat16, "f16", __half)          \
  FC_IM2COL_TF32(X, d, dn)                                        \
  FC_IM2COL_TF32X3(X, d, dn)                                      \
  FC_IM2COL_F32(X, d, dn)

// A configuration in parentheses, so that its commas survive the macros.
template <class>
struct Im2colArgument;
template <class Config>
struct Im2colArgument<void(Config)> {
  using type = Config;
};
#define FC_IM2COL_CONFIG(config) Im2colArgument<void config>::type
#define FC_IM2COL_INSTANTIATE(name, dtype, products, config) \
  template int launch_conv_im2col<FC_IM2COL_CONFIG(config)>(const ConvCall&);

}  // namespace fastconv::cuda
