// Fused Winograd wgrad kernels of F(3x3,4x4).
#include "conv_winograd_wgrad.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_INSTANTIATE(launch_wgrad_fused, WinogradF4x4_3x3, const ConvCall&)

}  // namespace fastconv::cuda::winograd
