// Pooling of NHWC by vectors of channels.
//
//   y[n,o,p,q,c] = reduce over (t,r,s) of x[n, o*stride - padding + t*dilation, ..., c]
//
// Mapping   one thread per 16 bytes of channels of an output (kSample, kExpectation: per four
//           channels, whose sums take the registers), c fastest: a warp loads whole lines, and
//           neighbouring outputs meet in L1. K = 2, 3: K x K taps known at compile time; every
//           load is made, those of taps in the padding from the nearest element, so that those
//           of a row are under way at once. K = 7: rows of seven where they lie in the input. K =
//           0: a loop over the taps in the input; any rank, stride and dilation.
// Layouts   x [N,D,H,W,C], y and index [N,O,P,Q,C]; C % VEC == 0, base pointers aligned to 16 bytes
//           (the index to one store). Dtypes f32, bf16, f16, summed in fp32; maxima of 16-bit types
//           are compared in pairs. Offsets have 32 bits within an image, its base 64.
// kSum      also Lp of power 1 and 2: fma(x, squares ? x : 1, sum), then the root.
// Padding   never read.
// Bytes     |x| + |y| (+ the index) from DRAM; K*K/stride^2 of |x| from L1, which gives 128 bytes
//           per cycle and SM where DRAM gives about 21 (H200): DRAM is the bound up to 3x3/2. FLOPs
//           per tap: 1 (sum) to 4 (maximum with its place). Not measured on a GPU.
// Determinism   one thread per output, a fixed order of taps: bitwise repeatable. Maxima and
//           samples have the bits of every other backend.
// Source    the definition; csrc/common/pool_sample.h for sampling.
#pragma once
#include "detail/pool_lanes.cuh"
#include "pool_fprop_any.cuh"

namespace fastconv::cuda {

constexpr int kPoolChannelThreads = 256;

template <class scalar_t, PoolKind KIND>
constexpr int kPoolChannels =
    KIND == PoolKind::kSample || KIND == PoolKind::kExpectation ? 4 : 16 / int(sizeof(scalar_t));

template <class scalar_t>
struct PoolChannelArguments : PoolArguments<scalar_t> {
  uint32_t vectors;  // of what is walked over
  FastDivmod by_vectors, by_extent[3];
  bool squares;  // kLp of power 2
  float share;   // backward: what all windows' dy is multiplied by; 0: whole / counted
};

// Keeps the compiler from using what it computed from the same value before.
__device__ __forceinline__ uint32_t not_known(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Vector i of what is walked over: its pixel, and the first of its channels.
struct PoolVectorPlace {
  int c, at[3];
  uint32_t n;

  template <class Arguments>
  __device__ __forceinline__ PoolVectorPlace(const Arguments& args, uint32_t i, int vec) {
    uint32_t found, rest = args.by_vectors.divmod(i, found);
    c = static_cast<int>(found) * vec;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      rest = args.by_extent[a].divmod(rest, found);
      at[a] = static_cast<int>(found);
    }
    n = rest;
  }
};

// Calls f(vector, tap, whether it is real) over the window's pixels in row-major order; one that is
// not real stands in for padding.
template <int K, class scalar_t, int VEC, PoolAxisKind AXES, class F>
__device__ __forceinline__ void over_channels(const PoolGeometry& g, const scalar_t* image,
                                              const PoolWindow<AXES>& window, const F& f) {
  PoolLanes<scalar_t, VEC> v;
  const int h0 = window.origin[1], w0 = window.origin[2];
  const int height = g.axis[1].in, width = g.axis[2].in;
  if constexpr (K > 0 && K <= 3) {
    // More than a row under way would not fit into the registers.
#pragma unroll 1
    for (int r = 0; r < K; ++r) {
      const int h = min(max(h0 + r, 0), height - 1);
      const scalar_t* const from = image + h * width * g.C;
#pragma unroll
      for (int s = 0; s < K; ++s) {
        const int w = min(max(w0 + s, 0), width - 1);
        v.load(from + w * g.C);
        f(v, r * K + s, h == h0 + r && w == w0 + s);
      }
    }
    return;
  }
  const int step = g.C * g.axis[2].dilation;
  if (K > 0 && w0 >= 0 && w0 + K <= width) {
#pragma unroll 1
    for (int r = window.taps[1].first; r < window.taps[1].last; ++r) {
      const scalar_t* const from = image + ((h0 + r) * width + w0) * g.C;
#pragma unroll
      for (int s = 0; s < K; ++s) {
        v.load(from + s * g.C);
        f(v, r * K + s, true);
      }
    }
    return;
  }
#pragma unroll 1
  for (int t = window.taps[0].first; t < window.taps[0].last; ++t) {
#pragma unroll 1
    for (int r = window.taps[1].first; r < window.taps[1].last; ++r) {
      const int d = window.origin[0] + t * g.axis[0].dilation, h = h0 + r * g.axis[1].dilation;
      int from = ((d * height + h) * width + w0) * g.C + window.taps[2].first * step;
      const int row_tap = (t * g.axis[1].kernel + r) * g.axis[2].kernel;
#pragma unroll 1
      for (int s = window.taps[2].first; s < window.taps[2].last; ++s, from += step) {
        v.load(image + from);
        f(v, row_tap + s, true);
      }
    }
  }
}

// The index of the VEC outputs of a thread.
template <class scalar_t, int VEC, PoolAxisKind AXES, class F>
__device__ __forceinline__ void store_index(const PoolChannelArguments<scalar_t>& args,
                                            uint32_t thread, const F& tap) {
  if (args.index == nullptr) return;
  const int64_t at = static_cast<int64_t>(thread) * VEC;
  if (!args.long_index) return store_bytes<VEC>(static_cast<uint8_t*>(args.index) + at, tap);
  // Worked out anew, rather than kept in registers all the while.
  const PoolVectorPlace place(args, not_known(thread), VEC);
  const PoolWindow<AXES> window(args.g, place.at);
  store_longs<VEC>(static_cast<int64_t*>(args.index) + at,
                   [&](int i) { return window.template place<int>(args.g, tap(i)); });
}

template <class scalar_t, PoolKind KIND, int K>
__global__ void __launch_bounds__(kPoolChannelThreads, 6)
    pool_fprop_channels_kernel(const PoolChannelArguments<scalar_t> args) {
  constexpr int VEC = kPoolChannels<scalar_t, KIND>;
  constexpr PoolAxisKind kAxes =
      K == 0 && KIND == PoolKind::kMax ? PoolAxisKind::kStrided : PoolAxisKind::kDense;
  using Lanes = PoolLanes<scalar_t, VEC>;
  const PoolGeometry& g = args.g;
  const uint32_t thread = blockIdx.x * kPoolChannelThreads + threadIdx.x;
  if (thread >= args.vectors) return;
  const PoolVectorPlace place(args, thread, VEC);
  const scalar_t* const image = args.x + place.n * g.in_size * g.C + place.c;
  const int64_t at = static_cast<int64_t>(thread) * VEC;  // in y
  const PoolWindow<kAxes> window(g, place.at);

  if constexpr (KIND == PoolKind::kMax) {
    PoolMaxLanes<scalar_t, VEC> reduction;
    reduction.start(window.first_tap(g));
    over_channels<K, scalar_t, VEC>(g, image, window, [&](const Lanes& v, int tap, bool real) {
      reduction.take(v, tap, real);
    });
    reduction.best.store(args.result + at);
    store_index<scalar_t, VEC, kAxes>(args, thread, [&](int i) { return reduction.tap(i); });
  } else if constexpr (KIND == PoolKind::kSample) {
    float threshold[VEC] = {}, sum[VEC] = {};  // first the total of weights
    over_channels<K, scalar_t, VEC>(g, image, window, [&](const Lanes& v, int, bool) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) threshold[i] += pool_weight(v.get(i));
    });
    const int64_t output = (place.n * static_cast<int64_t>(g.C) + place.c) * g.out_size +
                           g.out_place(place.at[0], place.at[1], place.at[2]);
    const uint64_t seed = *args.seed;
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      float u;
      pool_uniform(seed, static_cast<uint64_t>(output + i * g.out_size), &u);
      // No threshold is negative: that is how a NaN among the weights is remembered.
      threshold[i] = threshold[i] != threshold[i] ? -1.f : u * threshold[i];
    }
    int taps[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) taps[i] = window.first_tap(g);
    over_channels<K, scalar_t, VEC>(g, image, window, [&](const Lanes& v, int tap, bool) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const float total = threshold[i] < 0 ? __uint_as_float(0x7fffffffu) : 0.f;
        bool taken = sum[i] > threshold[i] || sum[i] - sum[i] != 0;
        if (pool_takes(v.get(i), total, threshold[i], &sum[i], &taken)) taps[i] = tap;
      }
    });
    Lanes y;
    scalar_t value[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i)
      value[i] = image[window.template place<int>(g, taps[i]) * g.C + i];
    memcpy(y.word, value, sizeof(value));
    y.store(args.result + at);
    store_index<scalar_t, VEC, kAxes>(args, thread, [&](int i) { return taps[i]; });
  } else {
    float sum[VEC] = {}, weights[VEC] = {};
    over_channels<K, scalar_t, VEC>(g, image, window, [&](const Lanes& v, int, bool real) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const float x = v.get(i);
        if constexpr (KIND == PoolKind::kExpectation) {
          const float weight = pool_weight(x);
          sum[i] = fmaf(weight, weight, sum[i]);
          weights[i] += weight;
        } else {
          if (real) sum[i] = fmaf(x, args.squares ? x : 1.f, sum[i]);
        }
      }
    });
    if constexpr (KIND == PoolKind::kExpectation) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) sum[i] = weights[i] == 0 ? 0.f : sum[i] / weights[i];
    } else {
      float counted = args.divisor;
      if (counted == 0)
        counted = args.template counted<kAxes>(place.at[0], place.at[1], place.at[2]);
      const float inverse = 1 / counted;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        sum[i] = divide(sum[i], counted, inverse) * args.whole;
        if (args.squares) sum[i] = sqrtf(sum[i]);
      }
    }
    Lanes y;
    y.set(sum);
    y.store(args.result + at);
  }
}

}  // namespace fastconv::cuda
