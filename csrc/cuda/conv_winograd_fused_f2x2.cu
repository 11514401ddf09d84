// Fused Winograd kernels of F(2x2,3x3), fprop and dgrad.
#include "conv_winograd_fused.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_INSTANTIATE(launch_fused, WinogradF2x2_3x3, const ConvCall&, Direction)

}  // namespace fastconv::cuda::winograd
