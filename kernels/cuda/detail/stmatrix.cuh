// stmatrix (compute capability 9.0): the way back of ldmatrix_x4 (mma.cuh), from fragments to rows
// of shared memory.
#pragma once
#include "platform.cuh"
#if defined(FC_EMULATE)
#include "sm90_interface.h"
#endif

namespace fastconv::cuda {

// Lanes 8m to 8m+7 give the addresses of the rows of matrix m, 16 bytes each, aligned to 16; r[m]
// is the lane's pair (row lane / 4, columns 2 (lane % 4) and the next one) of matrix m. All 32
// lanes together.
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#if defined(FC_EMULATE)
  emu::store_matrix(r, row, {__FILE__, __LINE__});
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

}  // namespace fastconv::cuda
