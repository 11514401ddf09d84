// wgmma (sm_90a): d [64, N] += a [64, depth] * b [N, depth]^T by the four warps of a warpgroup,
// with b in shared memory, a there or in registers, and d in registers; the depth is 32 bytes, 16
// elements of bf16 and fp16, 8 of TF32. All 128 threads call each of these together, the first
// warp's index being a multiple of four.
//
// d of thread t: d[i] is row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4)
// + i % 2. Between the first wgmma and the wait its registers may not be touched.
//
// Operands are described by 64 bits: where they start and how they go on. K-major, [rows][128
// bytes] in the 128B swizzle, as TMA writes them: eight rows are 1024 bytes; the next 32 bytes of
// gemm_k are the same descriptor, started 32 bytes later. MN-major (16-bit types), [gemm_k][128
// bytes]: eight values of gemm_k are 1024 bytes, and the next 64 of MN lie `leading` bytes on.
// Source: PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include <type_traits>

#include "mbarrier.cuh"

namespace fastconv::cuda {

// The operand's swizzle pattern: `start` is a multiple of 1024.
__device__ __forceinline__ uint64_t wgmma_operand(const void* start, unsigned leading = 16) {
#if defined(FC_EMULATE)
  const unsigned at = emu::shared_address(start);
#else
  const unsigned at = shared_u32(start);
#endif
  constexpr uint64_t SWIZZLE_128B = 1, GROUP_BYTES = 1024;
  return static_cast<uint64_t>((at & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         GROUP_BYTES >> 4 << 32 | SWIZZLE_128B << 62;
}
// `bytes` further on.
__device__ __forceinline__ uint64_t wgmma_moved(uint64_t operand, unsigned bytes) {
  return operand + (bytes >> 4);
}

// Before the first wgmma that uses registers, and after they were written.
__device__ __forceinline__ void wgmma_fence() {
#if defined(FC_EMULATE)
  emu::warpgroup_fence({__FILE__, __LINE__});
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#if defined(FC_EMULATE)
  emu::warpgroup_commit({__FILE__, __LINE__});
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most PENDING groups of this warp are in flight.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
#if defined(FC_EMULATE)
  emu::warpgroup_wait(PENDING, {__FILE__, __LINE__});
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// Keeps the compiler from moving uses of accumulators over the point: it does not know that wgmma
// writes them later than the instruction.
template <int COUNT>
__device__ __forceinline__ void wgmma_pin(float (&d)[COUNT]) {
#if defined(FC_EMULATE)
  static_cast<void>(d);
#else
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
// The same of an operand in registers: until here they are not free for anything else.
template <int COUNT>
__device__ __forceinline__ void wgmma_pin(uint32_t (&a)[COUNT]) {
#if defined(FC_EMULATE)
  static_cast<void>(a);
#else
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(a[i])::"memory");
#endif
}

#if !defined(FC_EMULATE)
// The accumulators as the text of the instruction and as its operands.
#define FC_TEXT10(t)                                                                               \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t \
  "9"
#define FC_TEXT30(a, b, c) FC_TEXT10(a) ", " FC_TEXT10(b) ", " FC_TEXT10(c)
#define FC_TEXT32 FC_TEXT30(, 1, 2) ", %30, %31"
#define FC_TEXT64 FC_TEXT30(, 1, 2) ", " FC_TEXT30(3, 4, 5) ", %60, %61, %62, %63"
#define FC_TEXT120 \
  FC_TEXT30(, 1, 2) ", " FC_TEXT30(3, 4, 5) ", " FC_TEXT30(6, 7, 8) ", " FC_TEXT30(9, 10, 11)
#define FC_TEXT128 FC_TEXT120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define FC_LIST4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define FC_LIST16(i) FC_LIST4(i), FC_LIST4((i) + 4), FC_LIST4((i) + 8), FC_LIST4((i) + 12)
#define FC_LIST32() FC_LIST16(0), FC_LIST16(16)
#define FC_LIST64() FC_LIST32(), FC_LIST16(32), FC_LIST16(48)
#define FC_LIST128() FC_LIST64(), FC_LIST16(64), FC_LIST16(80), FC_LIST16(96), FC_LIST16(112)

// What follows the accumulators: a, b, whether to accumulate, and of 16-bit types which operands
// are MN-major. Lists come as names of macros, so that their commas stay within them.
#define FC_WGMMA(shape_and_types, text, list, a_text, a_list, b_at, keep_at, more, ...)       \
  asm volatile("{\n  .reg .pred p;\n  setp.ne.b32 p, " keep_at                                \
               ", 0;\n  wgmma.mma_async.sync.aligned." shape_and_types " {" text "}, " a_text \
               ", " b_at ", p, 1, 1" more ";\n}"                                              \
               : list()                                                                       \
               : a_list(), "l"(b), "r"(static_cast<int>(accumulate))__VA_ARGS__)
#define FC_A_SHARED() "l"(a)
#define FC_A_REGISTERS() "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define FC_MAJORS_SHARED() , "n"(A_MN), "n"(B_MN)
#define FC_MAJORS_REGISTERS() , "n"(B_MN)
#define FC_WGMMA_SHAPE(shape, text, list, a_text, a_list, b_at, keep_at, majors_text, majors)      \
  if constexpr (std::is_same_v<T, __nv_bfloat16>)                                                  \
    FC_WGMMA(shape "k16.f32.bf16.bf16", text, list, a_text, a_list, b_at, keep_at,                 \
             ", " majors_text, majors());                                                          \
  else if constexpr (std::is_same_v<T, __half>)                                                    \
    FC_WGMMA(shape "k16.f32.f16.f16", text, list, a_text, a_list, b_at, keep_at, ", " majors_text, \
             majors());                                                                            \
  else                                                                                             \
    FC_WGMMA(shape "k8.f32.tf32.tf32", text, list, a_text, a_list, b_at, keep_at, "", )
#define FC_WGMMA_SHARED(shape, text, list, a_at, b_at, keep_at, a_mn_at, b_mn_at)           \
  FC_WGMMA_SHAPE(shape, text, list, a_at, FC_A_SHARED, b_at, keep_at, a_mn_at ", " b_mn_at, \
                 FC_MAJORS_SHARED)
#define FC_WGMMA_REGISTERS(shape, text, list, a_text, b_at, keep_at, b_mn_at)               \
  FC_WGMMA_SHAPE(shape, text, list, "{" a_text "}", FC_A_REGISTERS, b_at, keep_at, b_mn_at, \
                 FC_MAJORS_REGISTERS)
#endif

#if defined(FC_EMULATE)
template <class T>
constexpr emu::Operand WGMMA_OPERAND = std::is_same_v<T, __half>          ? emu::Operand::kHalf
                                       : std::is_same_v<T, __nv_bfloat16> ? emu::Operand::kBfloat16
                                                                          : emu::Operand::kTf32;
#endif

// T: __nv_bfloat16, __half, or float, whose top 19 bits count. N / 2 accumulators. A_MN, B_MN: the
// operand is MN-major. !accumulate: what d held does not count.
template <class T, int N, bool A_MN = false, bool B_MN = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N == 64 || N == 128 || N == 256, "the shapes in use");
  static_assert(sizeof(T) == 2 || !(A_MN || B_MN), "TF32 is K-major");
#if defined(FC_EMULATE)
  emu::warpgroup_product({WGMMA_OPERAND<T>, N, accumulate, A_MN, B_MN, a, b}, d,
                         {__FILE__, __LINE__});
#else
  if constexpr (N == 64) {
    FC_WGMMA_SHARED("m64n64", FC_TEXT32, FC_LIST32, "%32", "%33", "%34", "%35", "%36");
  } else if constexpr (N == 128) {
    FC_WGMMA_SHARED("m64n128", FC_TEXT64, FC_LIST64, "%64", "%65", "%66", "%67", "%68");
  } else {
    FC_WGMMA_SHARED("m64n256", FC_TEXT128, FC_LIST128, "%128", "%129", "%130", "%131", "%132");
  }
#endif
}

// The same with a in registers, which leaves its rows free to come from anywhere: each warp has its
// 16 rows as mma.cuh has them for one product of a warp (with an ldmatrix_x4, of 16-bit types).
// They may not change before the wait either, and a wgmma_fence stands between their last change
// and this.
template <class T, int N, bool B_MN = false>
__device__ __forceinline__ void wgmma_with_registers(float (&d)[N / 2], const uint32_t (&a)[4],
                                                     uint64_t b, bool accumulate) {
  static_assert(N == 64 || N == 128, "the shapes in use");
  static_assert(sizeof(T) == 2 || !B_MN, "TF32 is K-major");
#if defined(FC_EMULATE)
  emu::warpgroup_product({WGMMA_OPERAND<T>, N, accumulate, false, B_MN, 0, b}, d,
                         {__FILE__, __LINE__}, a);
#else
  if constexpr (N == 64) {
    FC_WGMMA_REGISTERS("m64n64", FC_TEXT32, FC_LIST32, "%32, %33, %34, %35", "%36", "%37", "%38");
  } else {
    FC_WGMMA_REGISTERS("m64n128", FC_TEXT64, FC_LIST64, "%64, %65, %66, %67", "%68", "%69", "%70");
  }
#endif
}

// setmaxnreg: gives registers of this warpgroup back, or takes what others gave back. The kernel
// needs __launch_bounds__ with its second argument, and each role one branch of a single if.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
#if defined(FC_EMULATE)
  emu::set_registers(COUNT, {__FILE__, __LINE__});
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
#if defined(FC_EMULATE)
  emu::set_registers(COUNT, {__FILE__, __LINE__});
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

}  // namespace fastconv::cuda
