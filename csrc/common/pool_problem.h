// Geometry of one pooling, ranks 1 to 3:
//   y[n,c,o,p,q] = reduce over (t,r,s) of x[n, c, o*stride - padding + t*dilation, ...]
// Ranks 1 and 2 set the unused leading spatial axes to extent 1, kernel 1, stride 1, padding 0.
// Plain data, passed by value; all extents are 64-bit.
#pragma once
#include "conv_problem.h"

namespace fastconv {

// What training keeps of a maximum: nothing, its place in the window (a byte, row-major taps), or
// its place in the input's plane as PyTorch counts.
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
    return i * stride[axis] - padding[axis];
  }
};

// Taps [first, last) of a window that lie in the input.
struct PoolTaps {
  int64_t first, last;
};
FC_HOST_DEVICE PoolTaps pool_taps(const PoolProblem& p, int axis, int64_t i) {
  const int64_t origin = p.origin(axis, i), step = p.dilation[axis];
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
