// What kernel code calls whose blocks wait for others of lower index, through release_flag.cuh in
// kernels/cuda/detail.
#pragma once
#include "kernel_interface.h"

namespace emu {

// Flags in global memory: a value that tells of what was written before it.
void flag_release(uint64_t* flag, uint64_t value, Site site);
// Until it has that value, which a thread of another block gives it in this launch.
void flag_wait(const uint64_t* flag, uint64_t value, Site site);

// run_cluster_launch with clusters that start in the order of their index, as many at a time as
// there happens to be room for.
int run_ordered_launch(const void* kernel, void (*invoke)(void*), void* arguments,
                       size_t argument_bytes, dim3 grid, dim3 block, size_t dynamic_bytes,
                       unsigned cluster);

}  // namespace emu
