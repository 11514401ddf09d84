// Fused Winograd kernels of F(4x4,3x3), and of F(3x3,4x4) for wgrad.
#include "conv_winograd_fused.h"
#include "conv_winograd_fused_wgrad.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_INSTANTIATE(launch_fused, WinogradF4x4_3x3, const ConvCall&, Direction)
FC_WINOGRAD_INSTANTIATE(launch_wgrad_fused, WinogradF4x4_3x3, const ConvCall&)

}  // namespace fastconv::cuda::winograd
