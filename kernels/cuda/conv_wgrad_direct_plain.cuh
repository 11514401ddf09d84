// Gradient of the weight from its definition: the twin of the tiled kernel, right for everything.
//
//   dw[k,c,t,r,s] = sum_{n,o,p,q} dy[n, k, o, p, q] * x[n, c, o*st-pd+t*dl, ...]
//
// Mapping   two kernels. The rows (n,o,p) are cut into `slices` equal ranges: one thread sums one
//           element of dw over one slice into partial[slice][element], grid-stride; then
//           conv_wgrad_direct_reduce_kernel adds the slices.
// Layouts   any dense one, through strides. Dtypes f32, f64, bf16, f16 (16-bit sums in fp32).
// Padding   an output whose tap lies outside x is skipped: neither read nor multiplied.
// Cost      2 * macs FLOPs; bound by load issue, a few percent of the FMA rate; the partial sums
//           are written and read once: 2 * slices * |dw| * sizeof(acc_t) bytes. Not measured on a
//           GPU.
// Determinism   slices depend on the problem only and are added in a fixed order: bitwise
// repeatable. Source    the definition.
#pragma once
#include "conv_direct_tensors.cuh"
#include "conv_fprop_direct_plain.cuh"
#include "detail/scalar.cuh"

namespace fastconv::cuda {

template <class scalar_t>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocksPerSm)
    conv_wgrad_direct_plain_kernel(const ConvProblem problem, const DenseTensor x_at,
                                   const DenseTensor w_at, const DenseTensor y_at,
                                   const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                   acc_t<scalar_t>* __restrict__ partial, int64_t slices) {
  const int64_t channels = problem.channels_per_group();
  const int64_t filters = problem.filters_per_group();
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPlainThreads;
  const int64_t weights = w_at.elements();
  const int64_t rows = problem.N * problem.out[0] * problem.out[1];
  const int64_t slice_rows = (rows + slices - 1) / slices;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
       i < weights * slices; i += threads) {
    const int64_t slice = i / weights;
    int64_t at[5];  // k, c, t, r, s
    w_at.coordinates(i - slice * weights, at);
    const scalar_t* const x_channel = x + (at[0] / filters * channels + at[1]) * x_at.stride[1];
    const scalar_t* const dy_filter = dy + at[0] * y_at.stride[1];
    const int64_t end = min(rows, (slice + 1) * slice_rows);
    acc_t<scalar_t> sum = 0;
    for (int64_t row = slice * slice_rows; row < end; ++row) {
      const int64_t p = row % problem.out[1];
      const int64_t o = row / problem.out[1] % problem.out[0];
      const int64_t n = row / problem.out[1] / problem.out[0];
      const int64_t d = o * problem.stride[0] - problem.padding[0] + at[2] * problem.dilation[0];
      const int64_t h = p * problem.stride[1] - problem.padding[1] + at[3] * problem.dilation[1];
      if (d < 0 || d >= problem.in[0] || h < 0 || h >= problem.in[1]) continue;
      const scalar_t* const x_row =
          x_channel + n * x_at.stride[0] + d * x_at.stride[2] + h * x_at.stride[3];
      const scalar_t* const dy_row =
          dy_filter + n * y_at.stride[0] + o * y_at.stride[2] + p * y_at.stride[3];
      for (int64_t q = 0; q < problem.out[2]; ++q) {
        const int64_t v = q * problem.stride[2] - problem.padding[2] + at[4] * problem.dilation[2];
        if (v < 0 || v >= problem.in[2]) continue;
        sum += to_acc(dy_row[q * y_at.stride[4]]) * to_acc(x_row[v * x_at.stride[4]]);
      }
    }
    partial[i] = sum;
  }
}

}  // namespace fastconv::cuda
