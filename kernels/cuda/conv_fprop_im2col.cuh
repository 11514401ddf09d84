// y[n,k,o,p,q] = b[k] + sum over c,t,r,s of x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s], as one
// matrix product per group over an implicit column matrix:
//   NHWC: y [N*O*P*Q, K/g] = cols [N*O*P*Q, T*R*S*C/g] * w^T     (gemm_m = pixels)
//   NCHW: y [K/g, N*O*P*Q] = w * cols [C/g*T*R*S, N*O*P*Q]       (gemm_n = pixels)
// The column matrix is never stored: the tile iterator computes the address of every element (or
// of every 16 bytes) while a stage is filled.
//
// Threads: one block per tile of the product, see detail/gemm.cuh. Any stride, padding, dilation
// and groups; fp32 (FFMA; tensor cores by TF32, or by three TF32 products), bf16, fp16;
// accumulation in fp32. FLOPs: 2 N K O P Q C/g T R S. Bytes from DRAM: x, w, y once where the L2
// holds what neighbouring blocks share; from L2: 1/BLOCK_M + 1/BLOCK_N elements per multiply-add
// (predictions per tile: detail/gemm.cuh).
//
// Channels that make no vectors, as a stem's three, lie in gemm_k without gaps: of the 160 steps
// that a 7x7x3 filter takes 147 are of use. But every element is fetched alone. As nvcc 13.0
// compiles it for sm_90a, the NHWC loop of 64x64x32 of 16-bit types then has 538 instructions for
// 16 HMMA (32 LDG, 32 STS; 134 in all by vectors), so that an SM issues for 538 clocks what
// mma.sync does in 109. With the table of taps that the wide tiles have they would be 384.
//
// Workspace: none. Deterministic. Speed: not measured on a GPU. Source: Chetlur et al., "cuDNN:
// Efficient Primitives for Deep Learning", 2014, section 3.
#pragma once
#include "detail/gemm_conv_gather.cuh"

namespace fastconv::cuda {

template <class Tile, bool NHWC, int VEC_X, int VEC_W, bool TAP_TABLE>
__global__ void __launch_bounds__(Tile::NUM_THREADS, Tile::MIN_BLOCKS)
    conv_fprop_im2col_kernel(const ConvGatherParams p) {
  conv_gather<Tile, false, NHWC, VEC_X, VEC_W, TAP_TABLE>(p);
}

}  // namespace fastconv::cuda
