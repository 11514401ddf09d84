// Batch normalisation with activation, backward, elementwise part, with g = dz * act'(pre):
//
//   dy = weight * rstd * (g - sum_g / n - (y - mean) * rstd^2 * sum_gy / n)
//
// or, where mean and rstd do not depend on y (evaluation), dy = weight * rstd * g. dresidual is g,
// or dz where the residual is added behind the activation. pre is computed anew from y.
//
// Mapping, dtypes   as norm_fprop.cuh.
// Bytes     |y| + |dz| + |dy| (+ |residual|, |dresidual|): bound by memory. Not measured on a GPU.
// Determinism   elementwise.
// Source    Ioffe and Szegedy, "Batch Normalization", 2015, section 3.
#pragma once
#include "detail/norm_arguments.cuh"

namespace fastconv::cuda {

// What every dy of a channel has in common: of g, and per distance of y from the mean.
template <class A, int CHANNELS>
struct NormMeans {
  A g[CHANNELS], slope[CHANNELS];

  template <class scalar_t>
  __device__ __forceinline__ void load(const NormArguments<scalar_t>& a, int k) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      g[i] = slope[i] = A(0);
      if (a.sum_g != nullptr) {
        const A rstd = a.rstd == nullptr ? A(1) : a.rstd[k + i];
        g[i] = a.sum_g[k + i] * a.inverse_count;
        slope[i] = a.sum_gy[k + i] * a.inverse_count * rstd * rstd;
      }
    }
  }
};

template <int COUNT, int CHANNELS, class scalar_t>
__device__ __forceinline__ void norm_dgrad_values(const NormArguments<scalar_t>& a,
                                                  const NormChannels<acc_t<scalar_t>, CHANNELS>& c,
                                                  const NormMeans<acc_t<scalar_t>, CHANNELS>& means,
                                                  int64_t at) {
  acc_t<scalar_t> centred[COUNT], dz[COUNT], g[COUNT], dy[COUNT];
  norm_gradients<COUNT>(a, c, at, centred, dz, g);
  if (a.dresidual != nullptr) {
    if (a.epilogue.residual_after)
      store_values<COUNT>(a.dresidual + at, dz);
    else
      store_values<COUNT>(a.dresidual + at, g);
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int k = CHANNELS == 1 ? 0 : i;
    dy[i] = c.scale[k] * (g[i] - means.g[k] - centred[i] * means.slope[k]);
  }
  store_values<COUNT>(a.dy + at, dy);
}

template <class scalar_t>
__global__ void __launch_bounds__(kNormThreads, 4)
    norm_dgrad_planes_kernel(const NormArguments<scalar_t> a) {
  NormSpan span;
  if (!norm_unit(a, span)) return;
  NormChannels<acc_t<scalar_t>, 1> c;
  NormMeans<acc_t<scalar_t>, 1> means;
  c.load(a, span.k);
  means.load(a, span.k);
  walk_span<kNormVector<scalar_t>>(span.begin, span.end, a.vectors, threadIdx.x & (a.lanes - 1),
                                   a.lanes, [&](auto together, int64_t at) {
                                     norm_dgrad_values<decltype(together)::value>(a, c, means, at);
                                   });
}

template <class scalar_t, int VEC>
__global__ void __launch_bounds__(kNormThreads, (VEC > 4 ? 2 : 4))
    norm_dgrad_channels_kernel(const NormArguments<scalar_t> a) {
  const NormPixels p = norm_pixels<VEC>(a);
  if (!p.any) return;
  NormChannels<acc_t<scalar_t>, VEC> c;
  NormMeans<acc_t<scalar_t>, VEC> means;
  c.load(a, p.k);
  means.load(a, p.k);
#pragma unroll 1
  for (int64_t pixel = p.first + p.slot; pixel < p.last; pixel += p.slots)
    norm_dgrad_values<VEC>(a, c, means, pixel * a.K + p.k);
}

}  // namespace fastconv::cuda
