// What the passes of batch normalisation with activation share: arguments, the constants of
// channels, and how blocks and threads are laid over a tensor in either layout.
//
// Planes (NCHW)     A group of `lanes` threads of a block has a unit, up to `chunk` elements of one
//                   plane (n, k). Planes are as long as they are, so that most of them begin off
//                   alignment: what comes before the first multiple of 16 bytes, and what is left
//                   behind the last, goes element by element.
// Channels (NHWC)   A thread has VEC channels, whose constants stay in its registers, and walks
//                   over pixels; blockDim.x = lanes * slots, lanes along the channels.
#pragma once
#include <cstring>

#include "epilogue.cuh"
#include "fast_divmod.cuh"

namespace fastconv::cuda {

constexpr int kNormThreads = 256;
template <class scalar_t>
constexpr int kNormVector = 16 / static_cast<int>(sizeof(scalar_t));

template <class scalar_t>
struct NormArguments {
  using A = acc_t<scalar_t>;
  const scalar_t *y, *dz;
  const A *mean, *rstd, *weight, *bias, *sum_g, *sum_gy;  // [K]; mean and rstd null: 0 and 1
  StoreEpilogue<A> epilogue;
  A inverse_count;
  scalar_t *z, *dy, *dresidual;
  A* partial;       // [K][splits][3] or [K][splits][2]
  int64_t skipped;  // elements of z's tensor between what two images (NHWC: pixels) have of z
  int K, lanes, splits;
  bool vectors;  // planes: all bases are aligned, and z's images
  // Planes.
  int64_t size, units, split_units;  // units: of all planes; in a reduction, of one channel
  int chunk;
  FastDivmod64 by_chunks, by_K;
  // Channels.
  int64_t pixels, block_pixels;
  FastDivmod by_groups;  // blocks along the channels
};

// z = act(pre) (+ residual), pre = (y - mean) scale + bias (+ residual), of CHANNELS channels.
template <class A, int CHANNELS>
struct NormChannels {
  A mean[CHANNELS], scale[CHANNELS], bias[CHANNELS];

  template <class scalar_t>
  __device__ __forceinline__ void load(const NormArguments<scalar_t>& a, int k) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      mean[i] = a.mean == nullptr ? A(0) : a.mean[k + i];
      scale[i] = a.rstd == nullptr ? A(1) : a.rstd[k + i];
      if (a.weight != nullptr) scale[i] *= a.weight[k + i];
      bias[i] = a.bias == nullptr ? A(0) : a.bias[k + i];
    }
  }
};

// COUNT neighbours in memory: one vector, or one element.
template <int COUNT, class scalar_t>
__device__ __forceinline__ void load_values(const scalar_t* from, acc_t<scalar_t> (&to)[COUNT]) {
  if constexpr (COUNT == 1)
    to[0] = to_acc(*from);
  else
    load_aligned(from, to);
}
template <int COUNT, class scalar_t>
__device__ __forceinline__ void store_values(scalar_t* to, const acc_t<scalar_t> (&from)[COUNT]) {
  if constexpr (COUNT == 1) {
    *to = from_acc<scalar_t>(from[0]);
  } else {
    // By the function of a store of 16 bytes: nvcc takes an assignment of as many apart where loops
    // surround it. Nobody reads the result from this SM's L1.
    static_assert(COUNT * sizeof(scalar_t) == 16);
    scalar_t values[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) values[i] = from_acc<scalar_t>(from[i]);
    uint4 word;
    memcpy(&word, values, sizeof(word));
    __stcg(reinterpret_cast<uint4*>(to), word);
  }
}

// Of COUNT neighbours at `at`, of as many channels or of one: y less its mean, and g, the gradient
// of the activation's argument. dz is kept apart, for the residual behind the activation.
template <int COUNT, int CHANNELS, class scalar_t>
__device__ __forceinline__ void norm_gradients(const NormArguments<scalar_t>& a,
                                               const NormChannels<acc_t<scalar_t>, CHANNELS>& c,
                                               int64_t at, acc_t<scalar_t> (&centred)[COUNT],
                                               acc_t<scalar_t> (&dz)[COUNT],
                                               acc_t<scalar_t> (&g)[COUNT]) {
  using A = acc_t<scalar_t>;
  A pre[COUNT];
  load_values<COUNT>(a.y + at, centred);
  load_values<COUNT>(a.dz + at, dz);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int k = CHANNELS == 1 ? 0 : i;
    g[i] = dz[i];
    centred[i] -= c.mean[k];
    pre[i] = centred[i] * c.scale[k] + c.bias[k];
  }
  if (a.epilogue.residual != nullptr && !a.epilogue.residual_after) {
    A r[COUNT];
    load_values<COUNT>(static_cast<const scalar_t*>(a.epilogue.residual) + at, r);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) pre[i] += r[i];
  }
  if (a.epilogue.any) activate_gradients(a.epilogue, pre, g);
}

// --- planes

// What of a plane a group of lanes has: elements [begin, end) of the tensor.
struct NormSpan {
  int64_t begin, end, n;
  int k;
};

// The unit of `chunk` elements at most, number `part` of a plane.
template <class scalar_t>
__device__ __forceinline__ NormSpan norm_span(const NormArguments<scalar_t>& a, int64_t n, int k,
                                              int64_t part) {
  const int64_t plane = (n * a.K + k) * a.size, first = part * a.chunk;
  return {plane + first, plane + min(first + a.chunk, a.size), n, k};
}

template <int COUNT>
struct Together {
  static constexpr int value = COUNT;
};

// f(Together<count>(), offset) for all elements of [begin, end), one by one or by vectors.
template <int VEC, class F>
__device__ __forceinline__ void walk_span(int64_t begin, int64_t end, bool vectors, int lane,
                                          int lanes, const F& f) {
  const int length = static_cast<int>(end - begin);
  int head = static_cast<int>(-begin & (VEC - 1));
  head = vectors && head < length ? head : length;
  const int body = (length - head) / VEC, tail = head + body * VEC;
#pragma unroll 1
  for (int i = lane; i < head + length - tail; i += lanes)
    f(Together<1>(), begin + (i < head ? i : i - head + tail));
#pragma unroll 1
  for (int i = lane; i < body; i += lanes)
    f(Together<VEC>(), begin + head + static_cast<int64_t>(i) * VEC);
}

// A thread's span of an elementwise pass; false: none.
template <class scalar_t>
__device__ __forceinline__ bool norm_unit(const NormArguments<scalar_t>& a, NormSpan& span) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (kNormThreads / a.lanes) +
                       threadIdx.x / static_cast<unsigned>(a.lanes);
  if (unit >= a.units) return false;
  uint64_t part, k;
  const uint64_t plane = a.by_chunks.divmod(static_cast<uint64_t>(unit), part);
  const uint64_t n = a.by_K.divmod(plane, k);
  span = norm_span(a, static_cast<int64_t>(n), static_cast<int>(k), static_cast<int64_t>(part));
  return true;
}

// f(span) for the units of a block's channel and split that are the thread's own, in order.
template <class scalar_t, class F>
__device__ __forceinline__ void walk_units(const NormArguments<scalar_t>& a, int k, int split,
                                           const F& f) {
  const int groups = kNormThreads / a.lanes;
  const int64_t first = split * a.split_units;
  const int64_t last = min(first + a.split_units, a.units);
#pragma unroll 1
  for (int64_t unit = first + threadIdx.x / static_cast<unsigned>(a.lanes); unit < last;
       unit += groups) {
    uint64_t part;
    const uint64_t n = a.by_chunks.divmod(static_cast<uint64_t>(unit), part);
    f(norm_span(a, static_cast<int64_t>(n), k, static_cast<int64_t>(part)));
  }
}

// --- channels

struct NormPixels {
  int k, slot, slots;   // first channel of the thread
  int64_t first, last;  // pixels of the block
  int split;
  bool any;
};

template <int VEC, class scalar_t>
__device__ __forceinline__ NormPixels norm_pixels(const NormArguments<scalar_t>& a) {
  NormPixels p;
  uint32_t group;
  p.split = static_cast<int>(a.by_groups.divmod(blockIdx.x, group));
  const int lane = static_cast<int>(threadIdx.x) & (a.lanes - 1);
  p.k = (static_cast<int>(group) * a.lanes + lane) * VEC;
  p.slots = kNormThreads / a.lanes;
  p.slot = static_cast<int>(threadIdx.x / static_cast<unsigned>(a.lanes));
  p.first = p.split * a.block_pixels;
  p.last = min(p.first + a.block_pixels, a.pixels);
  p.any = p.k < a.K;
  return p;
}

}  // namespace fastconv::cuda
