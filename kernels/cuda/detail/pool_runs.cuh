// Runs of neighbouring elements between global and shared memory, 16 bytes at a time whatever their
// alignment: in shared memory a run lies as many elements behind a multiple of 16 bytes as it does
// in global memory, so that both are aligned at the same pieces; the ends go singly.
#pragma once
#include "plane_rows.cuh"

namespace fastconv::cuda {

// Issues the copy of from[0, length) to tile[phase_of(from) ...]; the caller commits, waits and
// synchronises. `tile` is aligned to 16 bytes.
template <class scalar_t>
__device__ __forceinline__ void load_run(scalar_t* tile, const scalar_t* from, int length,
                                         int threads) {
  copy_box(tile, RowBox{phase_of(from), 0, 0}, from, 0, 0, 1, 1, length,
           static_cast<int>(threadIdx.x), threads);
}

// tile[phase_of(to) ...] to to[0, length).
template <class scalar_t>
__device__ __forceinline__ void store_run(const scalar_t* tile, scalar_t* to, int length,
                                          int threads) {
  constexpr int kElements = kPiece<scalar_t>;
  const int phase = phase_of(to), end = phase + length;
#pragma unroll 1
  for (int at = threadIdx.x * kElements; at < end; at += threads * kElements) {
    const int first = at - phase;
    if (first >= 0 && at + kElements <= end) {
      *reinterpret_cast<uint4*>(to + first) = *reinterpret_cast<const uint4*>(tile + at);
    } else {
#pragma unroll 1
      for (int e = max(first, 0); e < min(first + kElements, length); ++e) to[e] = tile[phase + e];
    }
  }
}

// The low bytes of tile[phase_of(to) ...] to to[0, length). Staged as 16 bits each: threads
// that write neighbouring bytes of shared memory are more than a race checker can tell apart.
__device__ __forceinline__ void store_low_bytes(const uint16_t* tile, uint8_t* to, int length,
                                                int threads) {
  constexpr int kElements = kPiece<uint8_t>;
  const int phase = phase_of(to), end = phase + length;
#pragma unroll 1
  for (int at = threadIdx.x * kElements; at < end; at += threads * kElements) {
    const int first = at - phase;
    if (first >= 0 && at + kElements <= end) {
      uint32_t packed[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 v = *reinterpret_cast<const uint4*>(tile + at + 8 * half);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
          const uint32_t low = (words[w] & 0xffu) | (words[w] >> 8 & 0xff00u);
          const uint32_t high = (words[w + 1] & 0xffu) | (words[w + 1] >> 8 & 0xff00u);
          packed[2 * half + w / 2] = low | high << 16;
        }
      }
      *reinterpret_cast<uint4*>(to + first) = uint4{packed[0], packed[1], packed[2], packed[3]};
    } else {
#pragma unroll 1
      for (int e = max(first, 0); e < min(first + kElements, length); ++e)
        to[e] = static_cast<uint8_t>(tile[phase + e]);
    }
  }
}

// Calls f(place, element) for from[0, length), the elements singly in registers.
template <class scalar_t, class F>
__device__ __forceinline__ void over_run(const scalar_t* from, int length, int threads,
                                         const F& f) {
  constexpr int kElements = kPiece<scalar_t>;
  const int phase = phase_of(from), end = phase + length;
#pragma unroll 1
  for (int at = threadIdx.x * kElements; at < end; at += threads * kElements) {
    const int first = at - phase;
    if (first >= 0 && at + kElements <= end) {
      const uint4 word = *reinterpret_cast<const uint4*>(from + first);
      scalar_t elements[kElements];
      memcpy(elements, &word, sizeof(word));
#pragma unroll
      for (int e = 0; e < kElements; ++e) f(first + e, elements[e]);
    } else {
#pragma unroll 1
      for (int e = max(first, 0); e < min(first + kElements, length); ++e) f(e, from[e]);
    }
  }
}

}  // namespace fastconv::cuda
