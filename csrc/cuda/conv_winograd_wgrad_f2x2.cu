// Fused Winograd wgrad kernels of F(3x3,2x2).
#include "conv_winograd_wgrad.h"

namespace fastconv::cuda::winograd {

FC_WINOGRAD_INSTANTIATE(launch_wgrad_fused, WinogradF2x2_3x3, const ConvCall&)

}  // namespace fastconv::cuda::winograd
