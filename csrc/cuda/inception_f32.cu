// Kernels of the inception module for fp32, TF32 among them.
#include "inception_launch.h"

namespace fastconv::cuda {

FC_INCEPTION_32(FC_INCEPTION_INSTANTIATE)

}  // namespace fastconv::cuda
