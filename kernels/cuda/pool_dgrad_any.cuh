// Backward of maximum, sum and Lp pooling for every window: the fallback of the kernels that move
// vectors.
//
//   maximum  dx[n,c,d,h,w] = sum of dy over the outputs whose index names this element
//   sum      dx = sum over the outputs that reach it of dy / (elements counted)
//   Lp       dx = x^(p-1) * sum over the outputs that reach it of dy y^(1-p) (/ counted * whole)
//
// Mapping   a gather: one thread per element of dx in memory order, which adds what the outputs
//           that reach it send back, in row-major order. No atomics.
// Layouts   NCHW, NHWC; ranks 1 to 3; adaptive windows; byte and int64 indices. Dtypes f32, f64,
//           bf16, f16 (16-bit sums in fp32). Extents below 2^31, offsets of 64 bits.
// Bytes     dy (with the index, or x and y) and dx from DRAM, every dy once per element of its
//           window from L1: bound by load issue. Not measured on a GPU.
// Determinism   one thread per element, a fixed order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "pool_fprop_any.cuh"

namespace fastconv::cuda {

// fp64 divisions and powers take more registers than 75% of an SM's threads can have.
template <class scalar_t, PoolKind KIND>
constexpr int kPoolDgradBlocks = sizeof(scalar_t) == 8 && KIND != PoolKind::kMax ? 4 : 6;

// What the outputs that reach element `here` of a plane send to it; `plane` is the plane's offset
// in tensors shaped as y.
template <PoolKind KIND, class scalar_t>
__device__ __forceinline__ acc_t<scalar_t> gathered(const PoolArguments<scalar_t>& args,
                                                    int64_t plane, const int (&here)[3]) {
  using A = acc_t<scalar_t>;
  constexpr PoolAxisKind kAny = PoolAxisKind::kAny;
  const PoolGeometry& g = args.g;
  const PoolRange os = g.axis[0].template outputs<kAny>(here[0]),
                  ps = g.axis[1].template outputs<kAny>(here[1]);
  const PoolRange qs = g.axis[2].template outputs<kAny>(here[2]);
  A sum = A(0);
#pragma unroll 1
  for (int o = os.first; o < os.last; ++o) {
    const int t = g.axis[0].template tap_on<kAny>(o, here[0]);
    if (t < 0) continue;
#pragma unroll 1
    for (int p = ps.first; p < ps.last; ++p) {
      const int r = g.axis[1].template tap_on<kAny>(p, here[1]);
      if (r < 0) continue;
#pragma unroll 1
      for (int q = qs.first; q < qs.last; ++q) {
        const int s = g.axis[2].template tap_on<kAny>(q, here[2]);
        if (s < 0) continue;
        const int64_t output = plane + g.out_place(o, p, q) * g.step();
        if constexpr (KIND == PoolKind::kMax) {
          const bool mine = args.long_index ? static_cast<const int64_t*>(args.index)[output] ==
                                                  g.in_place(here[0], here[1], here[2])
                                            : static_cast<const uint8_t*>(args.index)[output] ==
                                                  (t * g.axis[1].kernel + r) * g.axis[2].kernel + s;
          if (mine) sum += to_acc(args.dy[output]);
        } else {
          A dy = to_acc(args.dy[output]);
          if constexpr (KIND == PoolKind::kSum) {
            dy = dy / (args.divisor != A(0) ? args.divisor : args.template counted<kAny>(o, p, q));
          } else {
            dy = lp_slope(dy, to_acc(args.y[output]), args.power.p);
            if (args.whole != A(0)) dy = dy / args.template counted<kAny>(o, p, q) * args.whole;
          }
          sum += dy;
        }
      }
    }
  }
  return sum;
}

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolAnyThreads, (kPoolDgradBlocks<scalar_t, KIND>))
    pool_dgrad_any_kernel(const PoolArguments<scalar_t> args) {
  using A = acc_t<scalar_t>;
  const PoolGeometry& g = args.g;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPoolAnyThreads + threadIdx.x;
  if (i >= g.elements) return;
  const PoolPlace<true> place(g, i);
  A sum = gathered<KIND>(args, g.plane(place.n, place.c, g.out_size), place.at);
  if (KIND == PoolKind::kLp) sum *= raise(to_acc(args.x[i]), args.power.p - 1);
  args.result[i] = from_acc<scalar_t>(sum);
}

}  // namespace fastconv::cuda
