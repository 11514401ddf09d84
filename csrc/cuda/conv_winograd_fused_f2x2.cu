// Fused Winograd kernels of F(2x2,3x3), fprop and dgrad.
#include "conv_winograd_fused.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_FUSED(WinogradF2x2_3x3, float, false)
FC_WINOGRAD_FUSED(WinogradF2x2_3x3, __nv_bfloat16, true)
FC_WINOGRAD_FUSED(WinogradF2x2_3x3, __half, true)

}  // namespace fastconv::cuda::winograd
