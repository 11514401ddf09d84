// GoogLeNet's inception module, for a launcher:
//
//   y = [act(W1 x + b1), act(W3 * r3 + b3), act(W5 * r5 + b5), act(Wp max3x3(x) + bp)]
//   [r3, r5] = act(Wr x + br)
//
// along the channels; W3 and W5 have odd extents and keep the image's.
#pragma once
#include <array>

#include "epilogue.h"

namespace fastconv {

// Every tensor is dense in one layout. Nothing is zero-sized.
struct InceptionCall {
  int64_t N, C, H, W;
  int64_t K1, R3, R5, K3, K5, KP;  // channels: of the 1x1, of r3 and r5, of the other branches
  int64_t extent3, extent5;        // of W3's and W5's filters
  bool channels_last;
  DType dtype;
  Activation activation;
  double slope;
  // joined: [W1, Wr], [K1 + R3 + R5, C], and its bias.
  const void *x, *joined, *joined_bias, *w3, *b3, *w5, *b5, *wp, *bp;
  void *y, *reductions;  // [N, K1 + K3 + K5 + KP, H, W], [N, R3 + R5, H, W]

  int64_t pixels() const { return N * H * W; }
  int64_t outputs() const { return K1 + K3 + K5 + KP; }
};

// As Python says a module's sizes: N, C, H, W; K1, R3, K3, R5, K5, KP; extent3, extent5.
using InceptionSizes = std::array<int64_t, 12>;

inline InceptionCall inception_of(const InceptionSizes& s, DType dtype, bool channels_last) {
  InceptionCall c{};
  c.N = s[0], c.C = s[1], c.H = s[2], c.W = s[3];
  c.K1 = s[4], c.R3 = s[5], c.K3 = s[6], c.R5 = s[7], c.K5 = s[8], c.KP = s[9];
  c.extent3 = s[10], c.extent5 = s[11];
  c.dtype = dtype;
  c.channels_last = channels_last;
  return c;
}

}  // namespace fastconv
