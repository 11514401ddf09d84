// Mistakes with mbarriers, TMA and wgmma. One warpgroup multiplies tiles of bf16 that one of its
// threads brings through a ring of two slots, or brings rows that it reverses.
#include "detail/mma.cuh"
#include "detail/tma_store.cuh"
#include "detail/wgmma.cuh"
#include "planted.h"

namespace planted {
using namespace fastconv::cuda;

enum class TmaBug {
  kNone,
  kNoFullWait,
  kWrongPhase,
  kTooManyBytes,
  kTooFewBytes,
  kNoInitFence,
  kSlotTooEarly,
  kNeverReleased,
  kArrivesTwice,
  kMisaligned,
};

// y = every 128 elements of x reversed. Tensor maps are made here, on the device side of the
// parameter list, as launchers make them.
template <TmaBug kBug>
__global__ void __launch_bounds__(128)
    ring_of_rows(const __grid_constant__ TensorMap x, float* y, int64_t n) {
  FC_DYN_SHARED(float, shared);
  float* const slots = shared + (kBug == TmaBug::kMisaligned ? 16 : 0);  // [2][128]
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + 512);
  uint64_t* const empty = full + 2;
  const int me = static_cast<int>(threadIdx.x);
  const int rows = static_cast<int>(n / 128);
  if (me == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 128);
    }
    if (kBug != TmaBug::kNoInitFence) mbarrier_init_fence();
  }
  __syncthreads();
  const auto load = [&](int row) {
    const int slot = row % 2;
    if (kBug != TmaBug::kSlotTooEarly) mbarrier_wait(empty + slot, row / 2 % 2 ^ 1);
    mbarrier_arrive_expect(full + slot, kBug == TmaBug::kTooManyBytes  ? 528
                                        : kBug == TmaBug::kTooFewBytes ? 496
                                                                       : 512);
    tma_load_tile(slots + slot * 128, &x, full + slot, 0, row, 0);
  };
  if (me == 0) load(0);
  for (int row = 0; row < rows; ++row) {
    const int slot = row % 2;
    if (me == 0 && row + 1 < rows) load(row + 1);
    if (kBug != TmaBug::kNoFullWait)
      mbarrier_wait(full + slot, (row / 2 % 2) ^ (kBug == TmaBug::kWrongPhase));
    y[row * 128 + me] = slots[slot * 128 + 127 - me];
    if (kBug != TmaBug::kNeverReleased) mbarrier_arrive(empty + slot);
    if (kBug == TmaBug::kArrivesTwice && me == 0) mbarrier_arrive(empty + slot);
  }
}

template <TmaBug kBug>
void run_rows(bool bug, const Arguments& a) {
  TensorMap map;
  const uint64_t extent[3] = {128, static_cast<uint64_t>(a.n / 128), 1};
  const uint64_t stride[3] = {4, 512, 512 * extent[1]};
  const uint32_t box[3] = {128, 1, 1};
  emu::encode_tile(&map, 4, false, 3, a.x, extent, stride, box, emu::Swizzle::kNone);
  launch_kernel(bug ? ring_of_rows<kBug> : ring_of_rows<TmaBug::kNone>,
                LaunchConfig{dim3(1), dim3(128), 4096, nullptr}, map, a.y, a.n);
}

// --- wgmma --------------------------------------------------------------------------------------

enum class ProductBug {
  kNone,
  kNoProxyFence,
  kNoBarrier,
  kNoWait,
  kNoFence,
  kTouched,
  kOperandChanged,
  kWrongStride,
  kWrongStart,
  kHalfAWarpgroup,
  kNotCommitted,
};

// y [64][64] = a [64][16] b [64][16]^T, of a, then b in x: written to the swizzled form by hand.
template <ProductBug kBug>
__global__ void __launch_bounds__(128) one_product(const float* x, float* y, int64_t) {
  FC_DYN_SHARED(unsigned char, shared);
  const int me = static_cast<int>(threadIdx.x);
  unsigned char* const base = shared + (1024 - reinterpret_cast<uintptr_t>(shared) % 1024) % 1024 +
                              (kBug == ProductBug::kWrongStart ? 512 : 0);
  // One row of a or of b to a thread.
  const auto fill = [&](float by) {
    for (int k = 0; k < 16; ++k) {
      const int at = me % 64 * 128 + (((k / 8) ^ (me % 8)) * 16) + k % 8 * 2;
      *reinterpret_cast<__nv_bfloat16*>(base + me / 64 * 8192 + at) =
          __float2bfloat16_rn(x[me * 16 + k] * by);
    }
  };
  fill(1.f);
  if (kBug != ProductBug::kNoProxyFence) fence_proxy_async();
  if (kBug != ProductBug::kNoBarrier) __syncthreads();
  float d[32];
  for (float& v : d) v = 0.f;
  if (kBug != ProductBug::kNoFence) wgmma_fence();
  const uint64_t wrong = kBug == ProductBug::kWrongStride ? uint64_t{512 >> 4} << 32 : 0;
  if (kBug != ProductBug::kHalfAWarpgroup || me >= 64)
    wgmma<__nv_bfloat16, 64>(d, wgmma_operand(base) - wrong, wgmma_operand(base + 8192), true);
  if (kBug != ProductBug::kNotCommitted) wgmma_commit();
  if (kBug == ProductBug::kTouched) d[me % 32] = 0.f;
  if (kBug == ProductBug::kOperandChanged) fill(2.f);
  if (kBug != ProductBug::kNoWait) wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) {
    const int row = me / 32 * 16 + me % 32 / 4 + i / 2 % 2 * 8;
    y[row * 64 + i / 4 * 8 + me % 4 * 2 + i % 2] = d[i];
  }
  if (kBug == ProductBug::kNoWait) wgmma_wait<0>();
}

template <ProductBug kBug>
void run_product(bool bug, const Arguments& a) {
  launch_kernel(bug ? one_product<kBug> : one_product<ProductBug::kNone>,
                LaunchConfig{dim3(1), dim3(128), 20480, nullptr}, static_cast<const float*>(a.x),
                a.y, a.n);
}

enum class RegisterBug { kNone, kNoFence, kFenceTooEarly, kInFlight, kFragmentIndex };

// The same with a in registers, loaded from where it lies; the first of two products, of b's rows,
// is not kept.
template <RegisterBug kBug>
__global__ void __launch_bounds__(128) registers_product(const float* x, float* y, int64_t) {
  FC_DYN_SHARED(unsigned char, shared);
  const int me = static_cast<int>(threadIdx.x), lane = me % 32, row = me / 32 * 16 + lane % 16;
  unsigned char* const base = shared + (1024 - reinterpret_cast<uintptr_t>(shared) % 1024) % 1024;
  for (int k = 0; k < 16; ++k) {
    const int at = me % 64 * 128 + (((k / 8) ^ (me % 8)) * 16) + k % 8 * 2;
    *reinterpret_cast<__nv_bfloat16*>(base + me / 64 * 8192 + at) =
        __float2bfloat16_rn(x[me * 16 + k]);
  }
  fence_proxy_async();
  __syncthreads();
  float d[32];
  uint32_t a[4];
  for (int pass = 0; pass < 2; ++pass) {
    const bool bug = pass == 1;
    if (bug && kBug == RegisterBug::kFenceTooEarly) wgmma_fence();
    ldmatrix_x4(a, base + (pass == 0 ? 8192 : 0) + row * 128 + ((lane / 16 ^ row % 8) * 16));
    if (kBug == RegisterBug::kFragmentIndex) {
      const uint32_t keep = a[1];
      a[1] = a[2];
      a[2] = keep;
    }
    if (!bug || (kBug != RegisterBug::kNoFence && kBug != RegisterBug::kFenceTooEarly))
      wgmma_fence();
    wgmma_with_registers<__nv_bfloat16, 64>(d, a, wgmma_operand(base + 8192), false);
    wgmma_commit();
    if (kBug == RegisterBug::kInFlight) a[me % 4] ^= 0x80008000u;
    wgmma_wait<0>();
  }
  for (int i = 0; i < 32; ++i)
    y[(me / 32 * 16 + lane / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <RegisterBug kBug>
void run_registers(bool bug, const Arguments& a) {
  launch_kernel(bug ? registers_product<kBug> : registers_product<RegisterBug::kNone>,
                LaunchConfig{dim3(1), dim3(128), 20480, nullptr}, static_cast<const float*>(a.x),
                a.y, a.n);
}

// --- stores -------------------------------------------------------------------------------------

enum class StoreBug {
  kNone,
  kNoProxyFence,
  kNoWait,
  kNotCommitted,
  kReusedEarly,
  kNoBarrierAfterWait,
  kMisaligned,
  kReadBack,
  kReadBackNoBarrier,
};

// y = x reversed by 128, through shared memory and a bulk store of one row at a time, and then as
// much added to it as there are rows.
template <StoreBug kBug>
__global__ void __launch_bounds__(128)
    store_of_rows(const float* x, const __grid_constant__ TensorMap map, float* y, int64_t n) {
  FC_DYN_SHARED(float, shared);
  float* const row = shared + (kBug == StoreBug::kMisaligned ? 16 : 0);
  const int me = static_cast<int>(threadIdx.x), rows = static_cast<int>(n / 128);
  for (int i = 0; i < rows; ++i) {
    if (me == 0 && kBug != StoreBug::kReusedEarly) tma_store_wait_read<0>();
    if (kBug == StoreBug::kNoBarrierAfterWait)
      __syncwarp();
    else
      __syncthreads();
    row[me] = x[i * 128 + 127 - me];
    if (kBug != StoreBug::kNoProxyFence) fence_proxy_async();
    __syncthreads();
    if (me == 0) {
      tma_store_tile(&map, row, 0, i);
      if (kBug != StoreBug::kNotCommitted) tma_store_commit();
    }
  }
  if (kBug == StoreBug::kNoWait) return;
  if (me == 0 && kBug == StoreBug::kReadBack)
    tma_store_wait_read<0>();
  else if (me == 0)
    tma_store_wait<0>();
  if (kBug != StoreBug::kReadBackNoBarrier) __syncthreads();
  for (int i = 0; i < rows; ++i) y[i * 128 + me] += rows;
}

template <StoreBug kBug>
void run_stores(bool bug, const Arguments& a) {
  TensorMap map;
  const uint64_t extent[2] = {128, static_cast<uint64_t>(a.m / 128)};
  const uint64_t stride[2] = {4, 512};
  const uint32_t box[2] = {128, 1};
  emu::encode_tile(&map, 4, false, 2, a.y, extent, stride, box, emu::Swizzle::kNone);
  launch_kernel(bug ? store_of_rows<kBug> : store_of_rows<StoreBug::kNone>,
                LaunchConfig{dim3(1), dim3(128), 640, nullptr}, static_cast<const float*>(a.x), map,
                a.y, a.n);
}

enum class BoxBug { kNone, kAxesSwapped, kExtentTooLarge, kNotSwizzled, kBoxesOverlap, kRounds };

// y = x [2][3][5][12], the outer two axes of RANK 4 as one axis of RANK 3: in boxes of
// [2][2][3][8], so that those at the far ends are clipped.
template <int RANK, BoxBug kBug>
__global__ void __launch_bounds__(32)
    store_of_boxes(const float* x, const __grid_constant__ TensorMap map) {
  FC_DYN_SHARED(unsigned char, shared);
  unsigned char* const box = shared + (256 - reinterpret_cast<uintptr_t>(shared) % 256) % 256;
  const int lane = static_cast<int>(threadIdx.x);
  constexpr int kRows = (RANK == 4 ? 2 : 1) * 2 * 3;
  for (int c3 = 0; c3 < (RANK == 4 ? 2 : 1); c3 += 2)
    for (int c2 = 0; c2 < (RANK == 4 ? 3 : 6); c2 += 2)
      for (int c1 = 0; c1 < 5; c1 += kBug == BoxBug::kBoxesOverlap ? 2 : 3)
        for (int c0 = 0; c0 < 12; c0 += 8) {
          for (int i = lane; i < kRows * 8; i += 32) {
            const int row = i / 8, at = row * 32 + i % 8 * 4;
            const int plane = RANK == 4 ? (c3 + row / 6) * 3 + c2 + row / 3 % 2 : c2 + row / 3;
            const int from = (plane * 5 + c1 + row % 3) * 12 + c0 + i % 8;
            const int to = kBug == BoxBug::kNotSwizzled ? at : at ^ (at >> 3 & 16);
            *reinterpret_cast<float*>(box + to) = from < 360 ? x[from] : 0.f;
          }
          fence_proxy_async();
          __syncwarp();
          if (lane == 0) {
            const int a1 = kBug == BoxBug::kAxesSwapped ? c2 : c1;
            const int a2 = kBug == BoxBug::kAxesSwapped ? c1 : c2;
            if constexpr (RANK == 4)
              tma_store_tile(&map, box, c0, a1, a2, c3);
            else
              tma_store_tile(&map, box, c0, a1, a2);
            tma_store_commit();
            tma_store_wait_read<0>();
          }
          __syncwarp();
        }
}

template <int RANK, BoxBug kBug>
void run_boxes(bool bug, const Arguments& a) {
  TensorMap map;
  const uint64_t wide = bug && kBug == BoxBug::kExtentTooLarge ? 16 : 12;
  const uint64_t extent[4] = {wide, 5, RANK == 4 ? 3 : 6, 2}, stride[4] = {4, 48, 240, 720};
  const uint32_t box[4] = {8, 3, 2, 2};
  emu::encode_tile(&map, 4, bug && kBug == BoxBug::kRounds, RANK, a.y, extent, stride, box,
                   emu::Swizzle::k32);
  launch_kernel(bug ? store_of_boxes<RANK, kBug> : store_of_boxes<RANK, BoxBug::kNone>,
                LaunchConfig{dim3(1), dim3(32), 1024, nullptr}, static_cast<const float*>(a.x),
                map);
}

static const Scenario kScenarios[] = {
    {"tma_no_full_wait", run_rows<TmaBug::kNoFullWait>},
    {"tma_wrong_phase", run_rows<TmaBug::kWrongPhase>},
    {"tma_too_many_bytes", run_rows<TmaBug::kTooManyBytes>},
    {"tma_too_few_bytes", run_rows<TmaBug::kTooFewBytes>},
    {"mbarrier_no_init_fence", run_rows<TmaBug::kNoInitFence>},
    {"tma_slot_too_early", run_rows<TmaBug::kSlotTooEarly>},
    {"mbarrier_never_released", run_rows<TmaBug::kNeverReleased>},
    {"mbarrier_arrives_twice", run_rows<TmaBug::kArrivesTwice>},
    {"tma_misaligned", run_rows<TmaBug::kMisaligned>},
    {"wgmma_no_proxy_fence", run_product<ProductBug::kNoProxyFence>},
    {"wgmma_no_barrier", run_product<ProductBug::kNoBarrier>},
    {"wgmma_no_wait", run_product<ProductBug::kNoWait>},
    {"wgmma_no_fence", run_product<ProductBug::kNoFence>},
    {"wgmma_accumulator_touched", run_product<ProductBug::kTouched>},
    {"wgmma_operand_changed", run_product<ProductBug::kOperandChanged>},
    {"wgmma_wrong_stride", run_product<ProductBug::kWrongStride>},
    {"wgmma_wrong_start", run_product<ProductBug::kWrongStart>},
    {"wgmma_half_a_warpgroup", run_product<ProductBug::kHalfAWarpgroup>},
    {"wgmma_not_committed", run_product<ProductBug::kNotCommitted>},
    {"wgmma_registers_no_fence", run_registers<RegisterBug::kNoFence>},
    {"wgmma_registers_fenced_early", run_registers<RegisterBug::kFenceTooEarly>},
    {"wgmma_registers_changed", run_registers<RegisterBug::kInFlight>},
    {"wgmma_registers_fragment", run_registers<RegisterBug::kFragmentIndex>},
    {"tma_store_no_proxy_fence", run_stores<StoreBug::kNoProxyFence>},
    {"tma_store_no_wait", run_stores<StoreBug::kNoWait>},
    {"tma_store_not_committed", run_stores<StoreBug::kNotCommitted>},
    {"tma_store_reused_early", run_stores<StoreBug::kReusedEarly>},
    {"tma_store_no_barrier_after_wait", run_stores<StoreBug::kNoBarrierAfterWait>},
    {"tma_store_misaligned", run_stores<StoreBug::kMisaligned>},
    {"tma_store_read_back", run_stores<StoreBug::kReadBack>},
    {"tma_store_read_back_no_barrier", run_stores<StoreBug::kReadBackNoBarrier>},
    {"tma_store_axes_swapped", run_boxes<4, BoxBug::kAxesSwapped>},
    {"tma_store_extent_too_large", run_boxes<3, BoxBug::kExtentTooLarge>},
    {"tma_store_not_swizzled", run_boxes<3, BoxBug::kNotSwizzled>},
    {"tma_store_rounds", run_boxes<4, BoxBug::kRounds>},
    {"tma_store_boxes_overlap", run_boxes<4, BoxBug::kBoxesOverlap>},
};
extern const ScenarioList tma_copies{kScenarios, std::size(kScenarios)};

}  // namespace planted
