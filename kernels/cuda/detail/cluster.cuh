// Clusters (compute capability 9.0): blocks that run at the same time on neighbouring SMs and reach
// each other's shared memory. A place of one block's shared memory has the same offset in all of
// them, so that a pointer to one's own and a rank name a peer's.
//
// A peer's memory may be used between two barriers of the cluster: before the first its barriers
// are not initialised, behind the last it may have exited.
#pragma once
#include <tuple>

#include "mbarrier.cuh"

namespace fastconv::cuda {

__device__ __forceinline__ unsigned cluster_rank() {
#if defined(FC_EMULATE)
  return emu::cluster_rank();
#else
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

// All threads of all blocks that have not exited; orders what they wrote to shared memory.
__device__ __forceinline__ void cluster_sync() {
#if defined(FC_EMULATE)
  emu::cluster_barrier({__FILE__, __LINE__});
#else
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
#endif
}

// Arrives at the barrier that lies at the same place in the block of that rank, which may be this
// one.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint64_t* barrier, unsigned rank) {
#if defined(FC_EMULATE)
  emu::mbarrier_arrive_peer(barrier, rank, {__FILE__, __LINE__});
#else
  asm volatile(
      "{\n"
      "  .reg .b32 remote;\n"
      "  mapa.shared::cluster.u32 remote, %0, %1;\n"
      "  mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_u32(barrier)),
      "r"(rank)
      : "memory");
#endif
}

// What lies at `place` in the block of that rank.
__device__ __forceinline__ float4 cluster_load(const float4* place, unsigned rank) {
  float4 v;
#if defined(FC_EMULATE)
  emu::peer_read(&v, place, sizeof v, rank, {__FILE__, __LINE__});
#else
  asm volatile(
      "{\n"
      "  .reg .b32 remote;\n"
      "  mapa.shared::cluster.u32 remote, %4, %5;\n"
      "  ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_u32(place)), "r"(rank)
      : "memory");
#endif
  return v;
}

#if defined(FC_EMULATE)
// run: emu::run_cluster_launch, or what takes the same.
template <class Run, class... Params, class... Args>
int emulate_clusters(const Run& run, void (*kernel)(Params...), const LaunchConfig& config,
                     unsigned cluster, Args... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  } call{kernel, {static_cast<Params>(args)...}};
  const auto invoke = [](void* erased) {
    const Call& made = *static_cast<const Call*>(erased);
    std::apply(made.kernel, made.arguments);
  };
  return run(reinterpret_cast<const void*>(kernel), invoke, &call, sizeof call, config.grid,
             config.block, config.shared_bytes, cluster);
}
#endif

// launch_kernel with `cluster` neighbours along x to a cluster, of which the grid is a multiple.
template <class... Params, class... Args>
int launch_clusters(void (*kernel)(Params...), const LaunchConfig& config, unsigned cluster,
                    Args... args) {
#if defined(FC_EMULATE)
  return emulate_clusters(::emu::run_cluster_launch, kernel, config, cluster, args...);
#else
  const auto* const function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(config.shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = config.grid;
  launch.blockDim = config.block;
  launch.dynamicSmemBytes = config.shared_bytes;
  launch.stream = static_cast<cudaStream_t>(config.stream);
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&launch, kernel, static_cast<Params>(args)...);
  // It is returned, not left behind for an unrelated call.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
#endif
}

}  // namespace fastconv::cuda
