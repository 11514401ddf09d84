// What multiplying staged zeros costs: 0 * inf and 0 * NaN are NaN, where by the definition a tap
// on padding contributes nothing. An output that came out as NaN and has taps outside the input is
// summed again, tap by tap; others are left alone. It costs a vote per block unless weights are
// infinite or NaN.
#pragma once
#include "conv_gather_direct_params.cuh"

namespace fastconv::cuda {

// Whether outputs first .. last of an axis have taps outside 0 .. extent - 1.
__device__ __forceinline__ bool reaches_border(const GatherParams& params, const GatherAxis& axis,
                                               int dim, int extent, int first, int last) {
  return first * params.in_step[dim] + axis.in_origin < 0 ||
         last * params.in_step[dim] + axis.in_origin + (axis.taps - 1) * params.tap_step[dim] >=
             extent;
}

// The sum of one output over the taps inside the input: `in` points to the group's first channel in
// the image, `w` to the group's and filter's first weight; o, p, q are outputs of the class.
template <class scalar_t>
__device__ __forceinline__ acc_t<scalar_t> sum_inside(
    const GatherParams& params, const GatherAxis& axis_d, const GatherAxis& axis_h,
    const GatherAxis& axis_w, const scalar_t* __restrict__ in, const scalar_t* __restrict__ w,
    int o, int p, int q) {
  acc_t<scalar_t> sum = 0;
  for (int t = 0; t < axis_d.taps; ++t) {
    const int d = o * params.in_step[0] + axis_d.in_origin + t * params.tap_step[0];
    if (d < 0 || d >= params.in_depth) continue;
    for (int r = 0; r < axis_h.taps; ++r) {
      const int h = p * params.in_step[1] + axis_h.in_origin + r * params.tap_step[1];
      if (h < 0 || h >= params.box.extent_h) continue;
      for (int s = 0; s < axis_w.taps; ++s) {
        const int v = q * params.in_step[2] + axis_w.in_origin + s * params.tap_step[2];
        if (v < 0 || v >= params.box.extent_w) continue;
        const scalar_t* in_tap =
            in + d * params.in_stride_d + h * params.box.stride_h + v * params.box.stride_w;
        const scalar_t* w_tap = w +
                                (axis_d.filter_begin + t * axis_d.filter_step) * params.w_tap[0] +
                                (axis_h.filter_begin + r * axis_h.filter_step) * params.w_tap[1] +
                                (axis_w.filter_begin + s * axis_w.filter_step) * params.w_tap[2];
#pragma unroll 1  // rare: not worth the code
        for (int c = 0; c < params.channels; ++c) {
          sum += to_acc(*in_tap) * to_acc(*w_tap);
          in_tap += params.box.stride_c;
          w_tap += params.w_in;
        }
      }
    }
  }
  return sum;
}

}  // namespace fastconv::cuda
