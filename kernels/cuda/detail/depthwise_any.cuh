// What the depthwise kernels that take every problem share: ranks 1 to 3, any filter, stride,
// dilation and padding, multiplier K / C, both layouts.
#pragma once
#include "channel_vector.cuh"
#include "fast_divmod.cuh"

namespace fastconv::cuda {

constexpr int kDepthwiseAnyThreads = 128;

// Extents are below 2^31, offsets 64-bit.
struct DepthwiseAny {
  int C, K, multiplier, taps;
  int in[3], filter[3], out[3], padding[3], stride[3], dilation[3];
  int64_t in_size, out_size;
  int64_t y_channels;  // of the dense tensor that y is in
  int64_t pixels;      // of all images, of what is walked over: outputs, in dgrad inputs
  int64_t range;       // how many of them a block has
  FastDivmod blocks;   // blocks along the channels
  FastDivmod extent[3];
  bool wide;    // pixels >= 2^31: beyond FastDivmod's numerators
  bool staged;  // the filters fit into shared memory
};

struct PixelAt {
  int n, at[3];
};

__device__ __forceinline__ PixelAt decode_pixel(const DepthwiseAny& g, int64_t pixel) {
  PixelAt found;
  if (g.wide) {
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      const int64_t rest = pixel / g.extent[axis].divisor;
      found.at[axis] = static_cast<int>(pixel - rest * g.extent[axis].divisor);
      pixel = rest;
    }
    found.n = static_cast<int>(pixel);
  } else {
    uint32_t rest = static_cast<uint32_t>(pixel);
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      uint32_t at;
      rest = g.extent[axis].divmod(rest, at);
      found.at[axis] = static_cast<int>(at);
    }
    found.n = static_cast<int>(rest);
  }
  return found;
}

// Offset of element [n, c, position] of a dense tensor; size = elements of one channel.
template <bool NHWC>
__device__ __forceinline__ int64_t element_offset(int n, int c, int64_t channels, int64_t size,
                                                  int64_t position) {
  return NHWC ? (n * size + position) * channels + c : (n * channels + c) * size + position;
}

__device__ __forceinline__ int64_t position_in(const int (&extent)[3], int d, int h, int w) {
  return (static_cast<int64_t>(d) * extent[1] + h) * extent[2] + w;
}

// VEC = 1, or a vector of NHWC channels.
template <class scalar_t, int VEC>
__device__ __forceinline__ void load_channels(const scalar_t* from, float (&to)[VEC]) {
  if constexpr (VEC == 1) {
    to[0] = to_acc(*from);
  } else {
    ChannelVector<scalar_t> vector;
    vector.load(from);
#pragma unroll
    for (int quad = 0; quad < VEC / 4; ++quad) {
      float values[4];
      vector.unpack(quad, values);
#pragma unroll
      for (int v = 0; v < 4; ++v) to[quad * 4 + v] = values[v];
    }
  }
}

template <class scalar_t, int VEC>
__device__ __forceinline__ void store_channels(scalar_t* to, const float (&from)[VEC]) {
  if constexpr (VEC == 1) {
    *to = from_acc<scalar_t>(from[0]);
  } else {
    ChannelVector<scalar_t> vector;
    vector.pack(from);
    vector.store(to);
  }
}

// The block's filters [filters][taps], of which `count` exist, to shared memory as fp32
// [taps][filters]. Ends in a barrier.
template <class scalar_t>
__device__ __forceinline__ void stage_filters(float* tile, const scalar_t* w, int filters, int taps,
                                              int count) {
  const int threads = blockDim.x * blockDim.y;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (int e = thread; e < filters * taps; e += threads) {
    const int k = e / taps;
    tile[(e - k * taps) * filters + k] = k < count ? to_acc(w[e]) : 0.f;
  }
  __syncthreads();
}

}  // namespace fastconv::cuda
