// Fused Winograd kernels of F(4x4,3x3), fprop and dgrad.
#include "conv_winograd_fused.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_INSTANTIATE(launch_fused, WinogradF4x4_3x3, const ConvCall&, Direction)

}  // namespace fastconv::cuda::winograd
