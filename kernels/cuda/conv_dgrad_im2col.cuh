// dx[n,c,h,..] = sum over k,t,r,s with h = o*st-pd+r*dl of dy[n, k, o, ..] * w[k, c, t, r, s], as
// an implicit GEMM that gathers, one per parity class of the strides (detail/gemm_conv_gather.cuh):
//   NHWC: dx [pixels, C/g] = cols [pixels, taps*K/g] * w         (gemm_m = pixels of the class)
//   NCHW: dx [C/g, pixels] = w^T * cols [K/g*taps, pixels]       (gemm_n = pixels of the class)
// Every element of dx belongs to one class and is written once, also where no tap reaches it.
//
// Threads: one block per tile; all classes and groups in one launch. Any stride, padding, dilation
// and groups; fp32 (FFMA; tensor cores by TF32, or by three TF32 products), bf16, fp16;
// accumulation in fp32. FLOPs: 2 N C D H W K/g T R S / prod(stride): those of fprop, without
// inserted zeros. Bytes and bounds as in fprop; with stride > 1 the writes of a class are strided
// and meet in L2. Workspace: none. Deterministic. Speed: not measured on a GPU. Source: Dumoulin
// and Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4 (transposed
// convolution); the split by residues is the polyphase form of its zero insertion.
#pragma once
#include "detail/gemm_conv_gather.cuh"

namespace fastconv::cuda {

template <class Tile, bool NHWC, int VEC_DY, int VEC_W, bool TAP_TABLE>
__global__ void __launch_bounds__(Tile::NUM_THREADS, Tile::MIN_BLOCKS)
    conv_dgrad_im2col_kernel(const ConvGatherParams p) {
  conv_gather<Tile, true, NHWC, VEC_DY, VEC_W, TAP_TABLE>(p);
}

}  // namespace fastconv::cuda
