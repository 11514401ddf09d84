// Geometry of one pooling, ranks 1 to 3:
//   y[n,c,o,p,q] = reduce over (t,r,s) of x[n, c, o*stride - padding + t*dilation, ...]
// Ranks 1 and 2 set the unused leading spatial axes to extent 1, kernel 1, stride 1, padding 0.
// An adaptive axis has stride 0: its output i reduces [i in / out, ceil((i + 1) in / out)), and
// kernel is the longest such window. Plain data, passed by value; all extents are 64-bit.
#pragma once
#include "conv_problem.h"

namespace fastconv {

// kMax         the largest element (NaN wins, the last of several; of ties the first)
// kSum         the sum over a divisor
// kLp          (sum of x^p)^(1/p)
// kSample      one element, drawn with the probability that its weight max(x, 0) has in the sum
// kExpectation what kSample yields on average: sum of weight^2 over sum of weight
enum class PoolKind : int { kMax = 0, kSum = 1, kLp = 2, kSample = 3, kExpectation = 4 };

// What training keeps of the chosen element: nothing, its place in the window (a byte, row-major
// taps), or its place in the input's plane as PyTorch counts.
enum class PoolIndex : int { kNone = 0, kByte = 1, kLong = 2 };
constexpr int64_t kMaxByteTaps = 255;

struct PoolProblem {
  int rank;
  int64_t N, C;
  int64_t in[3];      // D, H, W
  int64_t kernel[3];  // T, R, S
  int64_t out[3];     // O, P, Q
  int64_t padding[3];
  int64_t stride[3];
  int64_t dilation[3];

  FC_HOST_DEVICE int64_t in_size() const { return in[0] * in[1] * in[2]; }
  FC_HOST_DEVICE int64_t out_size() const { return out[0] * out[1] * out[2]; }
  FC_HOST_DEVICE int64_t kernel_size() const { return kernel[0] * kernel[1] * kernel[2]; }
  // Where the window of output i starts; negative in the padding.
  FC_HOST_DEVICE int64_t origin(int axis, int64_t i) const {
    if (stride[axis] == 0) return i * in[axis] / out[axis];
    return i * stride[axis] - padding[axis];
  }
  FC_HOST_DEVICE bool adaptive() const {
    return stride[0] == 0 || stride[1] == 0 || stride[2] == 0;
  }
};

// Taps [first, last) of a window that lie in the input.
struct PoolTaps {
  int64_t first, last;
};
FC_HOST_DEVICE PoolTaps pool_taps(const PoolProblem& p, int axis, int64_t i) {
  const int64_t origin = p.origin(axis, i), step = p.dilation[axis];
  if (p.stride[axis] == 0)
    return {0, ((i + 1) * p.in[axis] + p.out[axis] - 1) / p.out[axis] - origin};
  const int64_t first = origin >= 0 ? 0 : (-origin + step - 1) / step;
  const int64_t room = p.in[axis] - origin;
  int64_t last = room <= 0 ? 0 : (room + step - 1) / step;
  if (last > p.kernel[axis]) last = p.kernel[axis];
  return {first, last < first ? first : last};
}

// Outputs [first, last) whose windows reach input i; with a dilation not every one has a tap there.
struct PoolOutputs {
  int64_t first, last;
};
FC_HOST_DEVICE PoolOutputs pool_outputs(const PoolProblem& p, int axis, int64_t i) {
  if (p.stride[axis] == 0)
    return {i * p.out[axis] / p.in[axis], ((i + 1) * p.out[axis] + p.in[axis] - 1) / p.in[axis]};
  const int64_t place = i + p.padding[axis], step = p.stride[axis];
  const int64_t least = place - p.dilation[axis] * (p.kernel[axis] - 1);
  const int64_t first = least <= 0 ? 0 : (least + step - 1) / step;
  const int64_t last = place / step + 1;
  return {first, last < p.out[axis] ? last : p.out[axis]};
}
// The tap of output o that lies on input i, or -1.
FC_HOST_DEVICE int64_t pool_tap_on(const PoolProblem& p, int axis, int64_t o, int64_t i) {
  const int64_t distance = i - p.origin(axis, o), step = p.dilation[axis];
  if (step == 1) return distance;
  return distance % step == 0 ? distance / step : -1;
}

// The elements of a window that an average counts along one axis: those in the input or, with
// `include_pad`, also those in the padding (but not beyond it, where ceil_mode may reach).
FC_HOST_DEVICE int64_t pool_window_size(const PoolProblem& p, int axis, int64_t i,
                                        bool include_pad) {
  if (p.stride[axis] == 0) return pool_taps(p, axis, i).last;
  const int64_t first = p.origin(axis, i), end = first + p.kernel[axis];
  const int64_t begin = include_pad || first > 0 ? first : 0;
  const int64_t limit = p.in[axis] + (include_pad ? p.padding[axis] : 0);
  return (end < limit ? end : limit) - begin;
}

// The longest window of an adaptive axis, or one more where no output divides it evenly.
FC_HOST_DEVICE int64_t pool_adaptive_kernel(int64_t in, int64_t out) {
  if (in % out == 0) return in / out;
  const int64_t longest = (in + out - 1) / out + 1;
  return longest < in ? longest : in;
}

// PyTorch's rule: with ceil_mode the last window has to start in the input or the padding before.
FC_HOST_DEVICE int64_t pool_out_extent(int64_t in, int64_t kernel, int64_t padding, int64_t stride,
                                       int64_t dilation, bool ceil_mode) {
  const int64_t room =
      in + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  int64_t out = room / stride + 1;
  if (ceil_mode && (out - 1) * stride >= in + padding) --out;
  return out;
}

}  // namespace fastconv
