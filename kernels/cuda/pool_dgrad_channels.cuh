// Backward of maximum, sum and Lp (powers 1 and 2) pooling of NHWC by vectors of channels.
//
//   maximum  dx[n,d,h,w,c] = sum of dy over the outputs whose index names this element
//   sum      dx = sum over the outputs that reach it of dy / (elements counted)
//   Lp       dx = x^(p-1) * sum over the outputs that reach it of dy y^(1-p) (/ counted * whole)
//
// Mapping   a gather: one thread per 16 bytes of channels of an element of dx, c fastest, which
//           adds what the outputs that reach it send back, in row-major order. No atomics.
// Layouts   dx, x [N,D,H,W,C], dy, y, index [N,O,P,Q,C]; C % VEC == 0, base pointers aligned to 16
//           bytes (the index, in bytes, to one vector's). Any rank, stride and padding; dilation 1.
//           Dtypes f32, bf16, f16, summed in fp32.
// Bytes     dy (with the index, or x and y) and dx from DRAM; windows / stride of dy from L1. About
//           three instructions per element and window: DRAM is the bound up to 3x3/2. Not measured
//           on a GPU.
// Determinism   one thread per element, a fixed order: bitwise repeatable.
// Source    the definition.
#pragma once
#include "pool_fprop_channels.cuh"

namespace fastconv::cuda {

template <class scalar_t, PoolKind KIND>
__global__ void __launch_bounds__(kPoolChannelThreads, 6)
    pool_dgrad_channels_kernel(const PoolChannelArguments<scalar_t> args) {
  constexpr int VEC = kPoolChannels<scalar_t, KIND>;
  constexpr PoolAxisKind kDense = PoolAxisKind::kDense;
  using Lanes = PoolLanes<scalar_t, VEC>;
  const PoolGeometry& g = args.g;
  const uint32_t thread = blockIdx.x * kPoolChannelThreads + threadIdx.x;
  if (thread >= args.vectors) return;
  const PoolVectorPlace place(args, thread, VEC);
  const int64_t image = place.n * g.out_size * g.C + place.c;
  const scalar_t* const dys = args.dy + image;
  const PoolRange os = g.axis[0].outputs<kDense>(place.at[0]);
  const PoolRange ps = g.axis[1].outputs<kDense>(place.at[1]);
  const PoolRange qs = g.axis[2].outputs<kDense>(place.at[2]);
  float sum[VEC] = {};
#pragma unroll 1
  for (int o = os.first; o < os.last; ++o) {
#pragma unroll 1
    for (int p = ps.first; p < ps.last; ++p) {
      // Of the row's first output: the tap that lies on this element, and its place in dy.
      uint32_t tap = (g.axis[0].tap_on<kDense>(o, place.at[0]) * g.axis[1].kernel +
                      g.axis[1].tap_on<kDense>(p, place.at[1])) *
                         g.axis[2].kernel +
                     g.axis[2].tap_on<kDense>(qs.first, place.at[2]);
      int at = ((o * g.axis[1].out + p) * g.axis[2].out + qs.first) * g.C;
      const int rows_counted = KIND == PoolKind::kMax || args.share != 0
                                   ? 0
                                   : g.axis[0].counted<kDense>(o, args.include_pad) *
                                         g.axis[1].counted<kDense>(p, args.include_pad);
#pragma unroll 1
      for (int q = qs.first; q < qs.last; ++q, at += g.C, tap -= g.axis[2].stride) {
        Lanes dy;
        dy.load(dys + at);
        if constexpr (KIND == PoolKind::kMax) {
          PoolBytes<VEC> index;
          index.load(static_cast<const uint8_t*>(args.index) + image + at);
#pragma unroll
          for (int i = 0; i < VEC; ++i)
            if (index.get(i) == tap) sum[i] += dy.get(i);
        } else {
          float share = args.share;
          if (share == 0)
            share = __fdividef(
                args.whole,
                static_cast<float>(rows_counted * g.axis[2].counted<kDense>(q, args.include_pad)));
          // y comes by quads: two vectors under way at once would not fit into the registers.
          PoolLanes<scalar_t, 4> y;
#pragma unroll
          for (int i = 0; i < VEC; ++i) {
            float slope = dy.get(i);
            if constexpr (KIND == PoolKind::kLp) {
              if (i % 4 == 0) y.load(args.y + image + at + i);
              const float root = y.get(i % 4);
              // root < 2^126, far above sqrt(FLT_MAX)
              if (args.squares) slope = __fdividef(slope, root);
              if (is_flat(root, !args.squares)) slope = 0;
            }
            sum[i] = fmaf(slope, share, sum[i]);
          }
        }
      }
    }
  }
  const int64_t here = static_cast<int64_t>(not_known(thread)) * VEC;  // in dx
  if (KIND == PoolKind::kLp && args.squares) {
    Lanes x;
    x.load(args.x + here);
#pragma unroll
    for (int i = 0; i < VEC; ++i) sum[i] *= x.get(i);
  }
  Lanes dx;
  dx.set(sum);
  dx.store(args.result + here);
}

}  // namespace fastconv::cuda
