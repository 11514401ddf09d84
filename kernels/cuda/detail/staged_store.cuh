// A warp's sums on their way to memory through a box of shared memory: 16 pixels of 128 bytes of
// channels each, with bias and epilogue applied and rounded to the result's dtype, in the 128B
// swizzle from which TMA stores it. TMA takes results whose base and pitch are multiples of 16
// bytes; of others the warp copies the box itself, element by element.
//
// The box is filled by fragments as they lie in registers: 16-bit types by stmatrix, fp32 by pairs,
// of which odd rows swap the halves of 32 channels, so that the 16 lanes of one access touch every
// bank once. The residual comes through the same box: rows of 16 bytes in, fragments out.
//
// Per warp and 16 x 64 sums in 16 bits, nothing following: 16 conversions of two, 4 stmatrix and
// one TMA store, which moves 2 KB into shared memory and 2 KB out of it. A turn of the sums as fp32
// and 16-byte stores by lanes (wgmma_tile.cuh) takes 16 stores of 8 bytes, 8 loads and 4 stores of
// 16, and 4 KB each way. So a tile of 256 x 128 has 128 KB go through shared memory where it were
// 256, 1024 cycles of it where it were 2048, and the half that TMA reads goes on under the next
// tile's products. fp32: 16 stores and two TMA stores, as many bytes either way. Predicted, not
// measured on a GPU.
#pragma once
#include <cstring>
#include <type_traits>

#include "conv_result.cuh"
#include "mma.cuh"
#include "stmatrix.cuh"
#include "tma_store.cuh"

namespace fastconv::cuda {

template <class scalar>
struct StoreBox {
  using scalar_t = scalar;
  static constexpr int ROWS = 16, BYTES = ROWS * 128;
  static constexpr int CHANNELS = 128 / static_cast<int>(sizeof(scalar));
  static constexpr int CHUNK = 16 / static_cast<int>(sizeof(scalar));  // channels of 16 bytes
  static constexpr int LANE_CHANNELS = CHANNELS / 4;  // different ones among a lane's values

  static __device__ __forceinline__ int place(int row, int chunk) {
    return row * 128 + ((chunk ^ (row & 7)) * 16);
  }
  // The lane's values come in groups of 16 channels and 16 rows: v[4 j + 2 half + e] is of row
  // lane / 4 + 8 half and channel 16 group + 8 j + 2 (lane % 4) + e. The i-th group that it does:
  static __device__ __forceinline__ int group(int i) {
    return sizeof(scalar) == 2 ? i : i ^ (threadIdx.x / 4 & 1);
  }
};

// bias[4 i + 2 j + e] of the lane's i-th group of the box whose first channel is n.
template <class Box>
__device__ __forceinline__ void load_box_bias(const ConvResult& to, int n,
                                              float (&bias)[Box::LANE_CHANNELS]) {
  const auto* const from = static_cast<const typename Box::scalar_t*>(to.bias);
#pragma unroll
  for (int k = 0; k < Box::LANE_CHANNELS; ++k) {
    const int c = n + 16 * Box::group(k / 4) + k / 2 % 2 * 8 + threadIdx.x % 4 * 2 + k % 2;
    bias[k] = from != nullptr && c < to.channels ? to_acc(from[c]) : 0.f;
  }
}

// each(element, pixel, channel) for a box's elements that exist, neighbours by neighbouring lanes;
// pixel(row): the number of the pixel that a row is, to.pixels or more if it is none.
template <class Box, class Pixel, class Each>
__device__ __forceinline__ void each_element(const ConvResult& to, unsigned char* box, int n,
                                             const Pixel& pixel, const Each& each) {
  using scalar_t = typename Box::scalar_t;
#pragma unroll 1
  for (int row = 0; row < Box::ROWS; ++row) {
    const int64_t m = pixel(row);
    if (m >= to.pixels) continue;
#pragma unroll 1
    for (int c = threadIdx.x % 32; c < Box::CHANNELS && n + c < to.channels; c += 32)
      each(reinterpret_cast<scalar_t*>(box + Box::place(row, c / Box::CHUNK))[c % Box::CHUNK], m,
           n + c);
  }
}

// Elements that do not exist are left as they are: what they become is not stored.
template <class Box, class Pixel>
__device__ __forceinline__ void stage_residual(const ConvResult& to, unsigned char* box, int n,
                                               const Pixel& pixel) {
  using scalar_t = typename Box::scalar_t;
  const auto* const residual = static_cast<const scalar_t*>(to.epilogue.residual);
  if (!to.residual_vec8) {
    each_element<Box>(to, box, n, pixel, [&](scalar_t& element, int64_t m, int c) {
      element = residual[m * to.channels + c];
    });
    return;
  }
  struct alignas(16) Chunk {
    scalar_t v[Box::CHUNK];
  };
  const int lane = threadIdx.x % 32, chunk = lane % 8, c = n + chunk * Box::CHUNK;
  Chunk r[4];
  bool exists[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t m = pixel(lane / 8 + 4 * i);
    exists[i] = m < to.pixels && c < to.channels;  // which come in eights
    if (exists[i]) r[i] = *reinterpret_cast<const Chunk*>(residual + m * to.channels + c);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (exists[i]) *reinterpret_cast<Chunk*>(box + Box::place(lane / 8 + 4 * i, chunk)) = r[i];
}

// One group's values from and to the box; rows and channels as above.
template <class Box>
struct BoxGroup {
  using scalar_t = typename Box::scalar_t;
  static constexpr bool HALVES = sizeof(scalar_t) == 2;
  unsigned char* at;  // 16-bit: the row of 16 bytes that the lane addresses
  int step;           // fp32: from the first eight channels to the others

  __device__ __forceinline__ BoxGroup(unsigned char* box, int i) {
    const int lane = threadIdx.x % 32;
    if constexpr (HALVES) {
      at = box + Box::place(lane % 16, 2 * i + lane / 16);
      step = 0;
    } else {
      const int chunk = 4 * Box::group(i) + lane % 4 / 2;
      at = box + Box::place(lane / 4, chunk) + lane % 2 * 8;
      step = Box::place(lane / 4, chunk ^ 2) - Box::place(lane / 4, chunk);
    }
  }
  __device__ __forceinline__ float2* pair(int k) const {
    return reinterpret_cast<float2*>(at + k / 2 * step + k % 2 * 8 * 128);
  }

  __device__ __forceinline__ void load(float (&v)[8]) const {
    if constexpr (HALVES) {
      uint32_t words[4];
      ldmatrix_x4(words, at);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        scalar_t two[2];
        memcpy(two, &words[k], 4);
        v[2 * k] = to_acc(two[0]);
        v[2 * k + 1] = to_acc(two[1]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 two = *pair(k);
        v[2 * k] = two.x;
        v[2 * k + 1] = two.y;
      }
    }
  }
  __device__ __forceinline__ void store(const float (&v)[8]) const {
    if constexpr (HALVES) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const scalar_t two[2] = {from_acc<scalar_t>(v[2 * k]), from_acc<scalar_t>(v[2 * k + 1])};
        memcpy(&words[k], two, 4);
      }
      stmatrix_x4(at, words);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) *pair(k) = make_float2(v[2 * k], v[2 * k + 1]);
    }
  }
};

// The columns of acc (wgmma.cuh) from `part` on, which are the channels from n on. FOLLOWED: by a
// bias and an epilogue, if the result has them.
template <class Box, bool FOLLOWED, int COUNT, class Pixel>
__device__ __forceinline__ void fill_box(const ConvResult& to, unsigned char* box,
                                         const float (&acc)[COUNT], int part,
                                         const float (&bias)[Box::LANE_CHANNELS], int n,
                                         const Pixel& pixel) {
  const bool epilogue = FOLLOWED && to.epilogue.any;
  if (epilogue && to.epilogue.residual != nullptr) {
    stage_residual<Box>(to, box, n, pixel);
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < Box::CHANNELS / 16; ++i) {
    const bool other = Box::group(i) != i;
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float mine = acc[part / 2 + 8 * i + e];
      v[e] = other ? acc[part / 2 + 8 * (i ^ 1) + e] : mine;
      if constexpr (FOLLOWED) v[e] += bias[4 * i + e / 4 * 2 + e % 2];
    }
    const BoxGroup<Box> group(box, i);
    if (epilogue) apply_epilogue(to.epilogue, v, [&](float(&r)[8]) { group.load(r); });
    group.store(v);
  }
}

// A warp's two boxes, filled in turn: TMA reads one while the other is filled, and goes on while
// the warp multiplies.
template <class Box>
struct BoxPair {
  unsigned char* boxes;  // [2][ROWS][128 bytes], aligned to 1024
  int turn = 0;          // bytes: where the next one is

  // The next one, free to be written. All lanes.
  __device__ __forceinline__ unsigned char* next() {
    if (threadIdx.x % 32 == 0) tma_store_wait_read<1>();
    __syncwarp();
    unsigned char* const box = boxes + turn;
    turn ^= Box::BYTES;
    return box;
  }
  // Stores one that is full: send() issues the TMA stores, where the result allows them.
  template <class Pixel, class Send>
  __device__ __forceinline__ void store(const ConvResult& to, unsigned char* box, int n,
                                        const Pixel& pixel, const Send& send) const {
    if (to.by_tma) {
      fence_proxy_async();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        send();
        tma_store_commit();
      }
    } else {
      __syncwarp();
      auto* const out = static_cast<typename Box::scalar_t*>(to.base);
      each_element<Box>(to, box, n, pixel,
                        [&](auto& element, int64_t m, int c) { out[m * to.pitch + c] = element; });
      __syncwarp();
    }
  }
};

}  // namespace fastconv::cuda
