// Blocks of a cluster: ranks, remote arrivals, each other's shared memory, and bytes that come
// before they are expected.
#include "copy_box.h"
#include "detail/cluster.cuh"
#include "detail/release_flag.cuh"
#include "detail/tma_multicast.cuh"

namespace assumptions::clusters {
using namespace fastconv::cuda;

namespace {

constexpr int kBlocks = 4;

// out [blocks]: the block's rank.
__global__ void __launch_bounds__(32, 1) ranks_kernel(uint32_t* out) {
#if defined(FC_SM90A)
  if (threadIdx.x == 0) out[blockIdx.x] = cluster_rank();
#endif
}

Outcome ranks() {
  const Memory out(3 * kBlocks * 4);
  finish([&] {
    return launch_clusters(ranks_kernel, LaunchConfig{dim3(3 * kBlocks), dim3(32), 0, nullptr},
                           kBlocks, out.as<uint32_t>());
  });
  Words along, across;
  for (uint32_t i = 0; i < 3 * kBlocks; ++i) {
    along.push_back(i % kBlocks);
    across.push_back(i / 3);
  }
  return judge(out.words(), {{"neighbours along x", along}, {"blocks three apart", across}});
}

// Every block tells every block that its values are there, by one arrival each, then reads them.
// out [blocks][blocks * 4].
__global__ void __launch_bounds__(32, 1) peers_kernel(float* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  float4* const values = reinterpret_cast<float4*>(dynamic);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic + 64);
  const unsigned rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, kBlocks);
    mbarrier_init_fence();
    const float first = 10.f * static_cast<float>(rank + 1);
    *values = make_float4(first, first + 1, first + 2, first + 3);
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    for (unsigned peer = 0; peer < kBlocks; ++peer) mbarrier_arrive_cluster(barrier, peer);
    mbarrier_wait(barrier, 0);
    for (unsigned peer = 0; peer < kBlocks; ++peer) {
      const float4 v = cluster_load(values, peer);
      float* const to = out + (blockIdx.x * kBlocks + peer) * 4;
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  }
  cluster_sync();
#endif
}

Outcome peers() {
  const Memory out(kBlocks * kBlocks * 16);
  finish([&] {
    return launch_clusters(peers_kernel, LaunchConfig{dim3(kBlocks), dim3(32), 128, nullptr},
                           kBlocks, out.as<float>());
  });
  std::vector<float> named, own;
  for (int block = 0; block < kBlocks; ++block)
    for (int peer = 0; peer < kBlocks; ++peer)
      for (int i = 0; i < 4; ++i) {
        named.push_back(10.f * static_cast<float>(peer + 1) + static_cast<float>(i));
        own.push_back(10.f * static_cast<float>(block + 1) + static_cast<float>(i));
      }
  return judge(out.words(), {{"the peer's memory, after its arrival", words_of(named)},
                             {"one's own memory", words_of(own)}});
}

// The first block's multicast has arrived everywhere before the second block says what it expects.
// out [2][words].
__global__ void __launch_bounds__(128, 1)
    early_bytes_kernel(const __grid_constant__ TensorMap map, uint32_t* out) {
#if defined(FC_SM90A)
  constexpr int kBytes = 8 * 128;
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const box = dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  uint64_t* const full = reinterpret_cast<uint64_t*>(box + kBytes);
  uint32_t* const words = reinterpret_cast<uint32_t*>(box);
  for (int i = threadIdx.x; i < kBytes / 4; i += blockDim.x) words[i] = kPoison;
  fence_proxy_async();
  const unsigned rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  cluster_sync();
  if (rank == 0 && threadIdx.x == 0) {
    mbarrier_arrive_expect(full, kBytes);
    tma_multicast_tile(box, &map, full, 3, 0, 0, 0);
    mbarrier_wait(full, 0);
  }
  cluster_sync();
  if (rank == 1 && threadIdx.x == 0) {
#if !defined(FC_EMULATE)
    for (int i = 0; i < 100; ++i) __nanosleep(1000);
#endif
    mbarrier_arrive_expect(full, kBytes);
  }
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < kBytes / 4; i += blockDim.x)
    out[rank * (kBytes / 4) + i] = words[i];
  cluster_sync();
#endif
}

Outcome early_bytes() {
  const std::vector<uint16_t> x = numbered(8 * 64);
  const Memory in(x), out(2 * 8 * 128);
  TensorAxes axes{in.as<void>(), fastconv::DType::kBFloat16, 3, {64, 8, 1}, {2, 128, 1024}};
  const uint32_t box[3] = {64, 8, 1};
  TensorMap map;
  if (encode_tile_map(&map, axes, box) != cudaSuccess)
    return {false, "the driver refuses the tensor map"};
  finish([&] {
    return launch_clusters(early_bytes_kernel, LaunchConfig{dim3(2), dim3(128), 2048 + 8, nullptr},
                           2, map, out.as<uint32_t>());
  });
  const Words there = swizzled_rows(x);
  Words both = there, lost = there;
  both.insert(both.end(), there.begin(), there.end());
  lost.insert(lost.end(), there.size(), kPoison);
  return judge(out.words(),
               {{"counted against what is expected later", both}, {"not there", lost}});
}

// Every pair adds one to what the pair before it has left, once that has said so: out [pairs].
__global__ void __launch_bounds__(32, 1)
    chain_kernel(uint32_t* out, uint64_t* flags, uint64_t number) {
#if defined(FC_SM90A)
  const int pair = blockIdx.x / 2;
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    if (pair > 0) {
      flag_wait(flags + pair - 1, number);
      flags[pair - 1] = 0;  // for a launch with the same number
    }
    out[pair] = pair > 0 ? __ldcg(out + pair - 1) + 1 : 1;
    if (2 * pair + 2 < static_cast<int>(gridDim.x)) flag_release(flags + pair, number);
  }
#endif
}

// More pairs than a GPU has room for: one that waited for a later one would wait for ever.
Outcome chain() {
  const int pairs = kEmulated ? 6 : present_device().sm_count * 8;
  const Memory out(size_t(pairs) * 4), flags(size_t(pairs) * 8);
  const LaunchConfig config{dim3(2 * pairs), dim3(32), 200 * 1024, nullptr};
  finish([&] {
    return launch_in_order(chain_kernel, config, 2, out.as<uint32_t>(), flags.as<uint64_t>(),
                           uint64_t(7));
  });
  Words counted, unseen;
  for (int i = 0; i < pairs; ++i) {
    counted.push_back(i + 1);
    unseen.push_back(i == 0);  // all bits are set before
  }
  return judge(out.words(), {{"each sees what the one before has left", counted},
                             {"nobody sees what another has left", unseen}});
}

}  // namespace

std::vector<Check> checks() {
  return {
      {"cluster_ranks", "a cluster is of neighbours along x, ranked in their order",
       "tiles of a pair or a split", 90, ranks},
      {"cluster_peers", "arrivals reach the peer's mbarrier, loads the peer's shared memory",
       "slots of clusters, sums of split tiles", 90, peers},
      {"early_bytes", "bytes may arrive at a peer's mbarrier before it says what it expects",
       "tma of clusters", 90, early_bytes},
      {"blocks_in_order", "clusters start in the order of their indexes, and flags hand over data",
       "tma's stream-K: a launch that ends", 90, chain},
  };
}

}  // namespace assumptions::clusters
