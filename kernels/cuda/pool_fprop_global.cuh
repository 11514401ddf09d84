// Maximum, sum and Lp (powers 1 and 2) pooling of whole planes, one output each.
//
//   y[n,c] = reduce over i of x[n,c,i], i = 0 ... L - 1, L = D H W
//
// Mapping   NCHW: 8, 16, 32 or 256 threads a plane, the k-th of which takes the elements of every
//           16-byte piece whose number is k modulo their number; then a butterfly of shuffles, and
//           for 256 threads one step through shared memory. NHWC: a thread has 16 bytes of channels
//           of every so-many-th pixel, and the threads of a channel are combined as a tree in
//           shared memory. Both load 16 bytes at a time; NCHW planes that start unaligned are
//           loaded by elements, which end up where they would have.
// Layouts   x [N,C,L], y, index [N,C], any alignment; or x [N,L,C], y, index [N,C], C % VEC == 0,
//           aligned to 16 bytes. Dtypes f32, bf16, f16, summed in fp32.
// Limits    no split of a plane over blocks: that would take a second launch and memory in between.
//           Few planes leave most of the device idle.
// Bytes     |x| from DRAM once, y is nothing beside it; 1 to 4 FLOPs per element: bound by memory.
//           Not measured on a GPU.
// Determinism   which element goes where depends on L (NHWC: and C) only: bitwise repeatable.
//           Maxima have the bits of every other backend: of equal ones the first, of NaNs the last.
// Source    the definition.
#pragma once
#include "detail/pool_lanes.cuh"
#include "pool_fprop_channels.cuh"

namespace fastconv::cuda {

constexpr int kPoolGlobalThreads = 256;
// Of a plane without any element above -inf; its first one is meant.
constexpr int kNoPlace = INT32_MAX;

template <class scalar_t>
struct PoolGlobal {
  int64_t planes;  // N C
  int length;      // L
  int C;           // NHWC only
  // NCHW: threads of a plane. NHWC: of a pixel's channels, a power of two.
  int lanes, log2_lanes;
  FastDivmod groups;  // NHWC: blocks along the channels
  float divisor, whole;
  bool squares, long_index;
  const scalar_t* x;
  scalar_t* y;
  void* index;

  __device__ __forceinline__ void keep(int64_t at, float value, int place, bool sum) const {
    if (sum) {
      value = value / divisor * whole;
      if (squares) value = sqrtf(value);
    }
    y[at] = from_acc<scalar_t>(value);
    if (sum || index == nullptr) return;
    if (place == kNoPlace) place = 0;
    if (long_index)
      static_cast<int64_t*>(index)[at] = place;
    else
      static_cast<uint8_t*>(index)[at] = static_cast<uint8_t>(place);
  }
};

// A partial result: of a maximum with its place.
struct PoolPartial {
  float value;
  int place;
};

template <PoolKind KIND>
__device__ __forceinline__ PoolPartial nothing_yet() {
  return {KIND == PoolKind::kMax ? lowest(0.f) : 0.f, kNoPlace};
}

// Elements come in the order of their places.
template <PoolKind KIND>
__device__ __forceinline__ void take(PoolPartial& to, float v, int place, bool squares) {
  if constexpr (KIND == PoolKind::kMax) {
    if (takes_over(v, to.value)) to = {v, place};
  } else {
    to.value = fmaf(v, squares ? v : 1.f, to.value);
  }
}

// Partial results come in any order, the same for both of a pair.
template <PoolKind KIND>
__device__ __forceinline__ void merge(PoolPartial& to, const PoolPartial& other) {
  if constexpr (KIND == PoolKind::kMax) {
    const bool nan = to.value != to.value, other_nan = other.value != other.value;
    const bool earlier = other.place < to.place;
    const bool over =
        other_nan ? !nan || !earlier
                  : !nan && (other.value > to.value || (other.value == to.value && earlier));
    if (over) to = other;
  } else {
    to.value += other.value;
  }
}

template <PoolKind KIND>
__device__ __forceinline__ void merge_lanes(PoolPartial& mine, int lanes) {
#pragma unroll 1
  for (int apart = lanes / 2; apart > 0; apart /= 2) {
    PoolPartial other;
    other.value = __shfl_xor_sync(0xffffffffu, mine.value, apart);
    other.place = KIND == PoolKind::kMax ? __shfl_xor_sync(0xffffffffu, mine.place, apart) : 0;
    merge<KIND>(mine, other);
  }
}

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolGlobalThreads, 6)
    pool_fprop_global_planes_kernel(const PoolGlobal<scalar_t> g) {
  constexpr int VEC = 16 / static_cast<int>(sizeof(scalar_t));
  FC_SHARED(PoolPartial, partial, [kPoolGlobalThreads / 32]);
  const int lane = threadIdx.x & (g.lanes - 1);
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * (kPoolGlobalThreads >> g.log2_lanes) +
                        (threadIdx.x >> g.log2_lanes);
  PoolPartial mine = nothing_yet<KIND>();
  if (plane < g.planes) {
    const scalar_t* const x = g.x + plane * g.length;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    int at = lane * VEC;
    if (aligned) {
#pragma unroll 2
      for (; at <= g.length - VEC; at += g.lanes * VEC) {
        PoolLanes<scalar_t, VEC> v;
        v.load(x + at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) take<KIND>(mine, v.get(i), at + i, g.squares);
      }
    }
#pragma unroll 1
    for (; at < g.length; at += g.lanes * VEC) {
#pragma unroll
      for (int i = 0; i < VEC; ++i)
        if (at + i < g.length) take<KIND>(mine, to_acc(x[at + i]), at + i, g.squares);
    }
  }
  merge_lanes<KIND>(mine, min(g.lanes, 32));
  if (g.lanes > 32) {
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = partial[threadIdx.x % (kPoolGlobalThreads / 32)];
    merge_lanes<KIND>(mine, kPoolGlobalThreads / 32);
  }
  if (lane == 0 && plane < g.planes) g.keep(plane, mine.value, mine.place, KIND != PoolKind::kMax);
}

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolGlobalThreads, 6)
    pool_fprop_global_channels_kernel(const PoolGlobal<scalar_t> g) {
  constexpr int VEC = 16 / static_cast<int>(sizeof(scalar_t));
  FC_SHARED(float, values, [VEC * kPoolGlobalThreads]);  // [VEC][pixels][lanes]
  FC_SHARED(int, places, [VEC * kPoolGlobalThreads]);
  const int lane = threadIdx.x & (g.lanes - 1), pixels = kPoolGlobalThreads >> g.log2_lanes;
  uint32_t group;
  const int64_t n = g.groups.divmod(blockIdx.x, group);
  const int c = (static_cast<int>(group) * g.lanes + lane) * VEC;
  PoolPartial mine[VEC];
#pragma unroll
  for (int i = 0; i < VEC; ++i) mine[i] = nothing_yet<KIND>();
  if (c < g.C) {
    const scalar_t* const x = g.x + n * g.length * g.C + c;
#pragma unroll 2
    for (int pixel = threadIdx.x >> g.log2_lanes; pixel < g.length; pixel += pixels) {
      PoolLanes<scalar_t, VEC> v;
      v.load(x + static_cast<int64_t>(pixel) * g.C);
#pragma unroll
      for (int i = 0; i < VEC; ++i) take<KIND>(mine[i], v.get(i), pixel, g.squares);
    }
  }
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    values[i * kPoolGlobalThreads + threadIdx.x] = mine[i].value;
    if (KIND == PoolKind::kMax) places[i * kPoolGlobalThreads + threadIdx.x] = mine[i].place;
  }
#pragma unroll 1
  for (int half = kPoolGlobalThreads / 2; half >= g.lanes; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= half) continue;
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const int at = i * kPoolGlobalThreads + threadIdx.x;
      PoolPartial other = {values[at + half], 0};
      if (KIND == PoolKind::kMax) other.place = places[at + half];
      merge<KIND>(mine[i], other);
      values[at] = mine[i].value;
      if (KIND == PoolKind::kMax) places[at] = mine[i].place;
    }
  }
  if (static_cast<int>(threadIdx.x) >= g.lanes || c >= g.C) return;
#pragma unroll
  for (int i = 0; i < VEC; ++i)
    g.keep(n * g.C + c + i, mine[i].value, mine[i].place, KIND != PoolKind::kMax);
}

}  // namespace fastconv::cuda
