// A pooling as the kernels see it: extents of 32 bits, offsets of 64, and no division but by
// numbers known at launch. Says the same as common/pool_problem.h.
#pragma once
#include "common/pool_call.h"
#include "fast_divmod.cuh"

namespace fastconv::cuda {

// A range of coordinates, taps or outputs.
struct PoolRange {
  int first, last;
};

// What is known of an axis when the kernel is compiled.
enum class PoolAxisKind {
  kAny,
  kStrided,  // not adaptive
  kDense,    // nor dilated
};

struct PoolAxis {
  int in, kernel, out, padding, stride, dilation;  // stride 0: adaptive
  FastDivmod by_stride, by_dilation, by_kernel;
  FastDivmod64 by_in, by_out;

  template <PoolAxisKind AXES>
  __device__ __forceinline__ bool adaptive() const {
    return AXES == PoolAxisKind::kAny && stride == 0;
  }

  // Where the window of output o starts; negative in the padding.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ int origin(int o) const {
    if (adaptive<AXES>()) return static_cast<int>(by_out.div(static_cast<uint64_t>(o) * in));
    return o * stride - padding;
  }

  // Taps of the window at `origin`, that of output o, that lie in the input.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ PoolRange taps(int o, int origin) const {
    if (AXES == PoolAxisKind::kDense) return {max(-origin, 0), min(kernel, in - origin)};
    if (adaptive<AXES>()) {
      const uint64_t end = static_cast<uint64_t>(o + 1) * in + (out - 1);
      return {0, static_cast<int>(by_out.div(end)) - origin};
    }
    const int before = max(-origin, 0) + dilation - 1;
    const int first = static_cast<int>(by_dilation.div(before));
    const int room = max(in - origin, 0) + dilation - 1;
    return {first, max(first, min(static_cast<int>(by_dilation.div(room)), kernel))};
  }

  // Outputs whose windows reach input i.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ PoolRange outputs(int i) const {
    if (adaptive<AXES>()) {
      const uint64_t end = static_cast<uint64_t>(i + 1) * out + (in - 1);
      return {static_cast<int>(by_in.div(static_cast<uint64_t>(i) * out)),
              static_cast<int>(by_in.div(end))};
    }
    const int place = i + padding;
    const int reach = AXES == PoolAxisKind::kDense ? kernel - 1 : dilation * (kernel - 1);
    const int before = max(place - reach, 0) + stride - 1;
    return {static_cast<int>(by_stride.div(before)),
            min(static_cast<int>(by_stride.div(place)) + 1, out)};
  }
  // The tap of output o that lies on input i, or -1.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ int tap_on(int o, int i) const {
    const uint32_t distance = static_cast<uint32_t>(i - origin<AXES>(o));
    if (AXES == PoolAxisKind::kDense || dilation == 1) return static_cast<int>(distance);
    uint32_t rest;
    const uint32_t tap = by_dilation.divmod(distance, rest);
    return rest == 0 ? static_cast<int>(tap) : -1;
  }

  // Elements of the window of output o that an average counts.
  template <PoolAxisKind AXES>
  __device__ __forceinline__ int counted(int o, bool include_pad) const {
    const int start = origin<AXES>(o);
    if (adaptive<AXES>()) return taps<AXES>(o, start).last;
    const int begin = include_pad ? start : max(start, 0);
    return min(start + kernel, in + (include_pad ? padding : 0)) - begin;
  }
};

struct PoolGeometry {
  PoolAxis axis[3];
  int C;
  int64_t in_size, out_size;
  FastDivmod64 by_C;
  int64_t elements;  // of what is walked over: y, in dgrad dx
  bool channels_last;

  // Elements between neighbours along W.
  __device__ __forceinline__ int64_t step() const { return channels_last ? C : 1; }
  // Offset of channel c of image n, of a tensor of `size` elements a plane.
  __device__ __forceinline__ int64_t plane(int64_t n, int c, int64_t size) const {
    return channels_last ? n * size * C + c : (n * C + c) * size;
  }
  __device__ __forceinline__ int64_t in_place(int d, int h, int w) const {
    return (static_cast<int64_t>(d) * axis[1].in + h) * axis[2].in + w;
  }
  __device__ __forceinline__ int64_t out_place(int o, int p, int q) const {
    return (static_cast<int64_t>(o) * axis[1].out + p) * axis[2].out + q;
  }
};

// Where element i of y (of dx, if INPUT) lies.
template <bool INPUT>
struct PoolPlace {
  int64_t n;
  int c, at[3];

  __device__ __forceinline__ PoolPlace(const PoolGeometry& g, int64_t i) {
    uint64_t rest = static_cast<uint64_t>(i), found;
    if (g.channels_last) {
      rest = g.by_C.divmod(rest, found);
      c = static_cast<int>(found);
    }
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      rest = (INPUT ? g.axis[a].by_in : g.axis[a].by_out).divmod(rest, found);
      at[a] = static_cast<int>(found);
    }
    if (!g.channels_last) {
      rest = g.by_C.divmod(rest, found);
      c = static_cast<int>(found);
    }
    n = static_cast<int64_t>(rest);
  }
};

}  // namespace fastconv::cuda
