// Neighbouring channels of one NHWC pixel, moved by one 16-byte load or store and widened to fp32
// four at a time, so that at most four widened values wait in registers.
#pragma once
#include <cstring>
#include <type_traits>

#include "platform.cuh"
#include "scalar.cuh"

namespace fastconv::cuda {

template <class scalar_t>
struct ChannelVector {
  static constexpr int kSize = 16 / sizeof(scalar_t);
  static constexpr int kQuads = kSize / 4;
  uint4 word;

  __device__ __forceinline__ void load(const scalar_t* from) {
    word = *reinterpret_cast<const uint4*>(from);
  }

  __device__ __forceinline__ void store(scalar_t* to) const {
    *reinterpret_cast<uint4*>(to) = word;
  }

  __device__ __forceinline__ void clear() { word = uint4{0, 0, 0, 0}; }

  // Channels 4 quad ... 4 quad + 3.
  __device__ __forceinline__ void unpack(int quad, float (&to)[4]) const {
    const uint32_t words[4] = {word.x, word.y, word.z, word.w};
    if constexpr (std::is_same<scalar_t, float>::value) {
#pragma unroll
      for (int v = 0; v < 4; ++v) to[v] = __uint_as_float(words[v]);
    } else if constexpr (std::is_same<scalar_t, __nv_bfloat16>::value) {
      // A bf16 is the upper half of an fp32: one instruction each, where taking the half out first
      // would be two.
#pragma unroll
      for (int v = 0; v < 4; v += 2) {
        to[v] = __uint_as_float(words[2 * quad + v / 2] << 16);
        to[v + 1] = __uint_as_float(words[2 * quad + v / 2] & 0xffff0000u);
      }
    } else {
      scalar_t values[4];
      memcpy(values, &words[2 * quad], sizeof(values));
#pragma unroll
      for (int v = 0; v < 4; ++v) to[v] = to_acc(values[v]);
    }
  }

  __device__ __forceinline__ void pack(const float (&from)[kSize]) {
    scalar_t values[kSize];
#pragma unroll
    for (int v = 0; v < kSize; ++v) values[v] = from_acc<scalar_t>(from[v]);
    memcpy(&word, values, sizeof(word));
  }
};

}  // namespace fastconv::cuda
