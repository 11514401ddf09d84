// Kernels of the inception module for bf16 and fp16.
#include "inception_launch.h"

namespace fastconv::cuda {

FC_INCEPTION_16(FC_INCEPTION_INSTANTIATE)

}  // namespace fastconv::cuda
