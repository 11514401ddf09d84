#include "cuda_lists.h"

namespace fastconv {

#if defined(FC_WITH_CUDA)
cuda::AlgorithmList cuda_algorithms() { return cuda::conv_algorithms(); }
cuda::PoolInstanceList cuda_pools() { return cuda::pool_instances(); }
cuda::InceptionInstanceList cuda_inceptions() { return cuda::inception_instances(); }
std::string cuda_device_refusal(const cuda::ConvInstance& instance, const cuda::Device& device) {
  return cuda::capability_refusal(instance, device);
}
const cuda::PoolInstance* choose_pool(const PoolCall& call, cuda::PoolPass pass) {
  return cuda::choose_pool_instance(call, pass, nullptr);
}
#else
cuda::AlgorithmList cuda_algorithms() { return {nullptr, 0}; }
cuda::PoolInstanceList cuda_pools() { return {nullptr, 0}; }
cuda::InceptionInstanceList cuda_inceptions() { return {nullptr, 0}; }
std::string cuda_device_refusal(const cuda::ConvInstance&, const cuda::Device&) { return {}; }
const cuda::PoolInstance* choose_pool(const PoolCall&, cuda::PoolPass) { return nullptr; }
#endif

}  // namespace fastconv
