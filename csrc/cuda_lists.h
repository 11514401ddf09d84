// The CUDA kernels of this build, none without CUDA. In a file of its own, so that the bindings,
// which take longest to compile, are the same in both builds.
#pragma once
#include <string>

#include "cuda/conv_algorithm.h"
#include "cuda/inception_algorithm.h"
#include "cuda/pool_algorithm.h"

namespace fastconv {

cuda::AlgorithmList cuda_algorithms();
cuda::PoolInstanceList cuda_pools();
cuda::InceptionInstanceList cuda_inceptions();
// Why the device cannot run the instance; empty if it can.
std::string cuda_device_refusal(const cuda::ConvInstance& instance, const cuda::Device& device);
const cuda::PoolInstance* choose_pool(const PoolCall& call, cuda::PoolPass pass);

}  // namespace fastconv
