// What the cost models take a GPU to do (csrc/cuda/device_rates.h), and how it fills itself.
#include <cmath>
#include <type_traits>

#include "cuda/cluster_room.h"
#include "cuda/device_rates.h"
#include "cuda/tensor_map.h"
#include "detail/cluster.cuh"
#include "detail/mma.cuh"
#include "detail/tma.cuh"
#include "detail/wgmma.cuh"
#include "device.h"

namespace assumptions::rates {
using namespace fastconv::cuda;

namespace {

// Emulated times mean nothing: there the kernels only run.
Outcome rate(double measured, double expected, const char* unit) {
  const double most = kEmulated ? HUGE_VAL : 1.4 * expected;
  return between(measured, kEmulated ? 0 : 0.7 * expected, most, unit);
}

// from, to: [count].
__global__ void __launch_bounds__(256)
    stream_kernel(const float4* from, float4* to, int64_t count) {
  const int64_t all = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += all)
    to[i] = from[i];
}

// The blocks together read all of `from` [count, a power of two], `times` times; each time from
// elsewhere, so that nothing is found in L1.
__global__ void __launch_bounds__(512)
    cached_kernel(const float4* from, float* to, int count, int times) {
  float sum = 0;
  const int all = gridDim.x * blockDim.x;
  for (int t = 0; t < times; ++t)
#pragma unroll 8
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += all) {
      const float4 v = __ldcg(from + ((i + t * 4096) & (count - 1)));
      sum += v.x + v.y + v.z + v.w;
    }
  to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

Outcome dram() {
  const size_t bytes = kEmulated ? 1 << 16 : size_t(1) << 28;
  const int64_t count = static_cast<int64_t>(bytes / 16);
  const Memory from(std::vector<float>(bytes / 4, 1.f)), to(bytes);
  const Device device = present_device();
  const LaunchConfig config{dim3(kEmulated ? 2 : device.sm_count * 8), dim3(256), 0, nullptr};
  const double seconds = seconds_of(5, [&] {
    return launch_kernel(stream_kernel, config, from.as<const float4>(), to.as<float4>(), count);
  });
  return rate(2. * bytes / seconds / 1e12, device_rates(device).bytes_per_s / 1e12, " TB/s");
}

Outcome l2() {
  const int count = kEmulated ? 1 << 10 : 1 << 20, times = kEmulated ? 2 : 64;  // 16 MiB
  const Device device = present_device();
  const int blocks = kEmulated ? 1 : device.sm_count * 4;
  const Memory from(std::vector<float>(size_t(count) * 4, 1.f)), to(size_t(blocks) * 512 * 4);
  const LaunchConfig config{dim3(blocks), dim3(512), 0, nullptr};
  const double seconds = seconds_of(3, [&] {
    return launch_kernel(cached_kernel, config, from.as<const float4>(), to.as<float>(), count,
                         times);
  });
  return rate(16. * count * times / seconds / 1e12, device_rates(device).l2_bytes_per_s / 1e12,
              " TB/s");
}

__global__ void __launch_bounds__(256) fma_kernel(float* out, int rounds, float by) {
  float v[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = static_cast<float>(threadIdx.x + i);
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i] = fmaf(v[i], by, 1.f);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) sum += v[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <bool WIDE>
__global__ void __launch_bounds__(256) mma_rate_kernel(float* out, int rounds) {
  uint32_t a[4], b[4][2];
  float d[4][4][4] = {};
  uint32_t seed = threadIdx.x * 2654435761u;
  const auto next = [&] {  // numbers near 1, of either type
    seed = seed * 1664525u + 1013904223u;
    return 0x3F803F80u | (seed & 0x007F007Fu);
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = next();
    b[i][0] = next(), b[i][1] = next();
  }
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if constexpr (WIDE)
        mma_m16n8k16<__nv_bfloat16>(d[i / 4][i % 4], a, b[i % 4]);
      else
        mma_m16n8k8_tf32(d[i / 4][i % 4], a, b[i % 4]);
    }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 64; ++i) sum += d[i / 16][i / 4 % 4][i % 4];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Two warpgroups, each [64, 128 bytes] by [256, 128 bytes] over and over.
template <bool WIDE>
__global__ void __launch_bounds__(256, 1) wgmma_rate_kernel(float* out, int rounds) {
#if defined(FC_SM90A)
  using T = std::conditional_t<WIDE, __nv_bfloat16, float>;
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const shared =
      dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  constexpr int WORDS = (128 + 256) * 32;
  for (int i = threadIdx.x; i < WORDS; i += 256)
    reinterpret_cast<uint32_t*>(shared)[i] = 0x3F803F80u | (i * 2654435761u & 0x807F807Fu);
  fence_proxy_async();
  __syncthreads();
  const uint64_t a = wgmma_operand(shared + threadIdx.x / 128 * 8192);
  const uint64_t b = wgmma_operand(shared + 16384);
  float d[128];
  for (int r = 0; r < rounds; ++r) {
    wgmma_pin(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      wgmma<T, 256>(d, wgmma_moved(a, 32 * k), wgmma_moved(b, 32 * k), r + k != 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(d);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum += d[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
#endif
}

// flops: of one block and round.
Outcome compute(const std::function<int(const LaunchConfig&, float*, int)>& launch, int per_sm,
                size_t shared_bytes, int rounds, double flops, double expected) {
  const Device device = present_device();
  const int blocks = kEmulated ? 1 : device.sm_count * per_sm;
  if (kEmulated) rounds = 2;
  const Memory out(size_t(blocks) * 256 * 4);
  const LaunchConfig config{dim3(blocks), dim3(256), shared_bytes, nullptr};
  const double seconds = seconds_of(3, [&] { return launch(config, out.as<float>(), rounds); });
  return rate(flops * rounds * blocks / seconds / 1e12, expected / 1e12, " TFLOP/s");
}

Outcome fma() {
  return compute([](auto& config, float* out,
                    int rounds) { return launch_kernel(fma_kernel, config, out, rounds, 0.5f); },
                 8, 0, 20000, 256. * 16 * 2, device_rates(present_device()).fma_flops);
}
template <bool WIDE>
Outcome mma() {
  const DeviceRates rates = device_rates(present_device());
  return compute(
      [](auto& config, float* out, int rounds) {
        return launch_kernel(mma_rate_kernel<WIDE>, config, out, rounds);
      },
      2, 0, 20000, 8. * 16 * 2 * 16 * 8 * (WIDE ? 16 : 8),
      WIDE ? rates.tensor_16_flops : rates.tensor_tf32_flops);
}
template <bool WIDE>
Outcome wgmma_rate() {
  const double peak = device_rates(present_device()).warpgroup_16_flops;
  return compute(
      [](auto& config, float* out, int rounds) {
        return launch_kernel(wgmma_rate_kernel<WIDE>, config, out, rounds);
      },
      1, 1024 + (128 + 256) * 128, 20000, 2. * 2 * 64 * 256 * (WIDE ? 64 : 32),
      WIDE ? peak : peak / 2);
}

// Loads by TMA, each waited for before the next: out [2], so that something depends on them.
__global__ void __launch_bounds__(32, 1)
    first_bytes_kernel(const __grid_constant__ TensorMap map, float* out, int rounds) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const box = dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  uint64_t* const full = reinterpret_cast<uint64_t*>(box + 1024);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  __syncwarp();
  float sum = 0;
  if (threadIdx.x == 0) {
    for (int r = 0; r < rounds; ++r) {
      mbarrier_arrive_expect(full, 1024);
      tma_load_tile(box, &map, full, 0, r % 64 * 8, 0);
      mbarrier_wait(full, r & 1);
      sum += *reinterpret_cast<const float*>(box);
      fence_proxy_async();  // the next one overwrites what was read
    }
    *out = sum;
  }
#endif
}

Outcome first_bytes() {
  const int rounds = kEmulated ? 3 : 4000;
  const Memory from(std::vector<float>(64 * 8 * 32, 1.f)), out(4);
  TensorAxes axes{from.as<void>(), fastconv::DType::kFloat32, 3, {32, 512, 1}, {4, 128, 65536}};
  const uint32_t box[3] = {32, 8, 1};
  TensorMap map;
  if (encode_tile_map(&map, axes, box) != cudaSuccess)
    return {false, "the driver refuses the tensor map"};
  const LaunchConfig config{dim3(1), dim3(32), 2048 + 8, nullptr};
  const double seconds = seconds_of(
      3, [&] { return launch_kernel(first_bytes_kernel, config, map, out.as<float>(), rounds); });
  return rate(seconds / rounds * 1e6, kFirstBytes_s * 1e6, " us");
}

__global__ void __launch_bounds__(384, 1) cluster_syncs_kernel(int rounds) {
#if defined(FC_SM90A)
  for (int r = 0; r < rounds; ++r) cluster_sync();
#endif
}

Outcome cluster_syncs() {
  const int rounds = kEmulated ? 3 : 4000;
  const LaunchConfig config{dim3(2), dim3(kEmulated ? 64 : 384), 0, nullptr};
  const double seconds =
      seconds_of(3, [&] { return launch_clusters(cluster_syncs_kernel, config, 2, rounds); });
  return rate(seconds / rounds * 1e6, kClusterSync_s * 1e6, " us");
}

__global__ void __launch_bounds__(32) nothing_kernel() {}

Outcome launches() {
  const double seconds = seconds_of(2000, [] {
    return launch_kernel(nothing_kernel, LaunchConfig{dim3(1), dim3(32), 0, nullptr});
  });
  return rate(seconds * 1e6, device_rates(present_device()).launch_s * 1e6, " us");
}

// out [blocks]: in which place the block began.
__global__ void __launch_bounds__(1024) order_kernel(unsigned* tickets, unsigned* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(tickets, 1u) + 1;
}

Outcome order() {
  const Device device = present_device();
  const unsigned blocks = kEmulated ? 8 : device.sm_count * 64, resident = device.sm_count * 2;
  const Memory tickets(4), out(blocks * 4);
  finish([&] {
    return launch_kernel(order_kernel, LaunchConfig{dim3(blocks), dim3(1024), 0, nullptr},
                         tickets.as<unsigned>(), out.as<unsigned>());
  });
  const Words places = out.words();
  double late = 0;  // places after which a block began
  for (unsigned i = 0; i < blocks; ++i) late = std::fmax(late, double(places[i]) - i);
  return between(late, 0, kEmulated ? HUGE_VAL : resident, " places behind its index at most");
}

#if !defined(FC_EMULATE)
__global__ void __launch_bounds__(384, 1) large_kernel(float* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(float, dynamic);
  out[threadIdx.x] = dynamic[threadIdx.x];
#endif
}
#endif

// Clusters of blocks that fill an SM each.
Outcome room(int cluster) {
  const Device device = present_device();
  int found = device.sm_count / cluster;
#if !defined(FC_EMULATE)
  constexpr int kShared = 200 * 1024;
  cudaFuncSetAttribute(large_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(device.sm_count / cluster * cluster);
  launch.blockDim = dim3(384);
  launch.dynamicSmemBytes = kShared;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&found, large_kernel, &launch);
  if (error != cudaSuccess) return {false, cudaGetErrorString(error)};
#endif
  return between(found, cluster_room(device, cluster), device.sm_count / cluster,
                 " clusters at a time");
}

}  // namespace

std::vector<Check> checks() {
  const char* const who = "the cost models of auto";
  return {
      {"rate_dram", "DRAM, read and written", who, 80, dram},
      {"rate_l2", "L2, read", who, 80, l2},
      {"rate_fma", "fp32 multiply-adds", who, 80, fma},
      {"rate_mma_bf16", "mma.sync of bf16", who, 80, mma<true>},
      {"rate_mma_tf32", "mma.sync of TF32", who, 80, mma<false>},
      {"rate_wgmma_bf16", "wgmma of bf16", who, 90, wgmma_rate<true>},
      {"rate_wgmma_tf32", "wgmma of TF32", who, 90, wgmma_rate<false>},
      {"rate_first_bytes", "a load by TMA until its bytes can be read, from L2", who, 90,
       first_bytes},
      {"rate_cluster_sync", "a barrier of a cluster of two", who, 90, cluster_syncs},
      {"rate_launch", "empty kernels behind each other", who, 80, launches},
      {"block_order", "blocks begin about in the order of their indexes",
       "the tail of persistent grids", 80, order},
      {"clusters_of_2", "pairs fill the GPU", who, 90, [] { return room(2); }},
      {"clusters_of_4", "clusters of four lie within parts of at most 18 SMs", who, 90,
       [] { return room(4); }},
      {"clusters_of_8", "clusters of eight lie within parts of at most 18 SMs", who, 90,
       [] { return room(8); }},
  };
}

}  // namespace assumptions::rates
