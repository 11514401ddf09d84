// Elements at explicit places of a plane: the gather of a maximum pooling's indices, and unpooling.
//
//   gather  y[n,c,i] = x[n,c, place(index[n,c,i])], 0 where the place lies outside of the plane
//   unpool  result[n,c,w] = x[n,c,i] for the last i with index[n,c,i] == w, 0 where there is none
//
// Mapping   gather: a thread per output in memory order.
//           unpool: planes are walked over in the order of the outputs by one thread (NHWC:
//           neighbouring threads have neighbouring channels) or one warp (NCHW: 32 outputs at a
//           time, of which the last of equal places writes), so that what comes later overwrites
//           without an atomic. Where planes are few, several of them share a plane's result, a
//           range of places each; all read all the indices.
// Layouts   NCHW, NHWC. Elements are only moved: any dtype of 2, 4 or 8 bytes.
// Bytes     x, the index (8 bytes each, or 1) and the result once from DRAM; no FLOPs. Bound by the
//           scattered sectors of what is gathered or sent. Not measured on a GPU.
// Limits    unpool: a place outside of the plane ends the kernel with an error (a trap, as
//           PyTorch's assertion), nothing is written there.
// Determinism   no atomics, a fixed order: bitwise repeatable, duplicates included.
// Source    the definition.
#pragma once
#include "detail/warp_match.cuh"
#include "pool_fprop_any.cuh"

namespace fastconv::cuda {

constexpr int kPoolPlacesThreads = 256;

// word_t: an unsigned integer of the element's size.
template <class word_t>
__global__ void __launch_bounds__(kPoolPlacesThreads, 6)
    pool_gather_any_kernel(const PoolGeometry g, const word_t* __restrict__ x,
                           const uint8_t* __restrict__ bytes, const int64_t* __restrict__ longs,
                           word_t* __restrict__ y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPoolPlacesThreads + threadIdx.x;
  if (i >= g.elements) return;
  const PoolPlace<false> place(g, i);
  int64_t from;
  if (longs != nullptr)
    from = longs[i];
  else
    from = PoolWindow<PoolAxisKind::kAny>(g, place.at).template place<int64_t>(g, bytes[i]);
  word_t value = 0;
  if (from >= 0 && from < g.in_size)
    value = x[g.plane(place.n, place.c, g.in_size) + from * g.step()];
  y[i] = value;
}

// in: planes of the result, out: of x and index.
struct PoolUnpool {
  int64_t in_size, out_size, planes;
  int64_t C;
  FastDivmod64 by_C, by_parts;
  int64_t part;  // places of a plane's result that one walker writes
};

__device__ __forceinline__ void require_inside(int64_t place, int64_t size) {
  if (place < 0 || place >= size) __trap();
}

// NHWC: a thread per (image, part, channel).
template <class word_t>
__global__ void __launch_bounds__(kPoolPlacesThreads, 6)
    pool_unpool_channels_kernel(const PoolUnpool g, const word_t* __restrict__ x,
                                const int64_t* __restrict__ index, word_t* __restrict__ result) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kPoolPlacesThreads + threadIdx.x;
  uint64_t c, part;
  const int64_t n = g.by_parts.divmod(g.by_C.divmod(thread, c), part);
  if (n * g.C >= g.planes) return;
  const int64_t begin = part * g.part, end = min(begin + g.part, g.in_size);
  x += n * g.out_size * g.C + c;
  index += n * g.out_size * g.C + c;
  result += n * g.in_size * g.C + c;
#pragma unroll 4
  for (int64_t w = begin; w < end; ++w) result[w * g.C] = 0;
  constexpr int kAhead = 2;  // loads under way
#pragma unroll 1
  for (int64_t i = 0; i < g.out_size; i += kAhead) {
    int64_t place[kAhead];
    word_t value[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t from = min(i + k, g.out_size - 1) * g.C;
      place[k] = index[from];
      value[k] = x[from];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      require_inside(place[k], g.in_size);
      if (place[k] >= begin && place[k] < end) result[place[k] * g.C] = value[k];
    }
  }
}

// NCHW: a warp per (plane, part). The barriers order the writes of a warp's lanes; all warps of a
// block walk as far.
template <class word_t>
__global__ void __launch_bounds__(kPoolPlacesThreads, 6)
    pool_unpool_planes_kernel(const PoolUnpool g, const word_t* __restrict__ x,
                              const int64_t* __restrict__ index, word_t* __restrict__ result) {
  constexpr int kWarps = kPoolPlacesThreads / 32;
  const int lane = threadIdx.x % 32;
  uint64_t part;
  const int64_t plane =
      g.by_parts.divmod(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, part);
  // Without a plane a warp has nothing to do but to meet the others of its block.
  const int64_t outputs = plane < g.planes ? g.out_size : 0;
  const int64_t begin = part * g.part, end = outputs == 0 ? 0 : min(begin + g.part, g.in_size);
  x += plane * g.out_size;
  index += plane * g.out_size;
  result += plane * g.in_size;
#pragma unroll 4
  for (int64_t w = begin + lane; w < end; w += 32) result[w] = 0;
  constexpr int kAhead = 2;
#pragma unroll 1
  for (int64_t i = lane; i - lane < g.out_size; i += 32 * kAhead) {
    int64_t place[kAhead];
    word_t value[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t from = i + k * 32;
      place[k] = -1 - lane;  // equal to no other, and in no part
      value[k] = 0;
      if (from >= outputs) continue;
      place[k] = index[from];
      value[k] = x[from];
      require_inside(place[k], g.in_size);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      __syncthreads();
      if (is_last_of_equal(place[k], lane) && place[k] >= begin && place[k] < end)
        result[place[k]] = value[k];
    }
  }
}

}  // namespace fastconv::cuda
