// Kernels of the inception module for fp32 by three products of TF32.
#include "inception_launch.h"

namespace fastconv::cuda {

FC_INCEPTION_TF32X3(FC_INCEPTION_INSTANTIATE)

}  // namespace fastconv::cuda
