// What kernel code for compute capability 9.0 calls, through mbarrier.cuh, tma.cuh and wgmma.cuh in
// kernels/cuda/detail. Apart from kernel_interface.h, so that other kernels do not depend on it.
#pragma once
#include "kernel_interface.h"
#include "tensor_map.h"

namespace emu {

// --- mbarrier -----------------------------------------------------------------------------------

void mbarrier_init(void* barrier, unsigned count, Site site);
// Makes this thread's inits visible; until then only the thread itself may use them.
void mbarrier_init_fence();
// One arrival; the phase then also waits for so many bytes of copies.
void mbarrier_arrive(void* barrier, unsigned expected_bytes, Site site);
// At the same place in another block of the cluster.
void mbarrier_arrive_peer(void* barrier, unsigned rank, Site site);
// Whether the phase of that parity is complete; waits for it, but may return false without cause.
bool mbarrier_try_wait(void* barrier, unsigned parity, Site site);

// --- TMA ----------------------------------------------------------------------------------------

// `at`: `rank` coordinates, innermost first; `offset`: of im2col, one per spatial axis, else null.
// The data become visible when a phase of the barrier completes that counts them, not before.
void tensor_load(void* shared, const TensorMap* map, int rank, const int* at, const int* offset,
                 void* barrier, Site site);
// The same, to the same place in every block of the mask; each one's barrier counts its own bytes.
void tensor_load_multicast(void* shared, const TensorMap* map, int rank, const int* at,
                           const int* offset, void* barrier, unsigned mask, Site site);
// Shared memory may be written again behind either wait that names the group; global memory has
// changed, for this thread and those that a barrier orders behind it, behind the second one.
void tensor_store(const TensorMap* map, int rank, const int* at, const void* shared, Site site);
void bulk_commit();
void bulk_wait_read(unsigned pending);
void bulk_wait(unsigned pending);
// Orders this thread's writes to shared memory before what TMA and wgmma read of it.
void fence_proxy_async();

// --- stmatrix -----------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16 bits: `row` is the one that this lane addresses.
void store_matrix(const uint32_t* registers, void* row, Site site);

// --- clusters -----------------------------------------------------------------------------------

unsigned cluster_rank();
// Until every thread of the cluster that has not exited is here.
void cluster_barrier(Site site);
// What lies at the same place in another block's dynamic shared memory.
void peer_read(void* to, const void* place, unsigned bytes, unsigned rank, Site site);

// run_launch with blocks that run together, neighbours along x.
int run_cluster_launch(const void* kernel, void (*invoke)(void*), void* arguments,
                       size_t argument_bytes, dim3 grid, dim3 block, size_t dynamic_bytes,
                       unsigned cluster);

// --- wgmma --------------------------------------------------------------------------------------

// Within the block's shared memory, as descriptors have it.
uint32_t shared_address(const void* p);

struct WarpgroupProduct {
  Operand type;
  unsigned n;       // 64 x n
  bool accumulate;  // false: d = a * b
  bool a_mn_major, b_mn_major;
  uint64_t a, b;  // descriptors
};
// d: n / 2 accumulators of the thread. They read as NaN until the wait. a: null, or the thread's
// four registers of operand a, which then has no descriptor.
void warpgroup_product(const WarpgroupProduct& product, float* d, Site site,
                       const uint32_t* a = nullptr);
void warpgroup_fence(Site site);
void warpgroup_commit(Site site);
void warpgroup_wait(unsigned pending, Site site);

// setmaxnreg: the registers of a thread of this warp from now on.
void set_registers(unsigned count, Site site);

}  // namespace emu
