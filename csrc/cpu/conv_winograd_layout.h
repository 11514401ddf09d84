// Block sizes and workspace layouts of the Winograd kernels, shared by the plan (which sizes the
// workspace) and the kernels (which index it). Sizes are in elements of acc_t, `bytes` is its size;
// n2 = tile*tile is the number of products per tile.
//
// fprop, dgrad:  V [c block][n2][tile of chunk][kDepth]       one chunk, all channels
//                U [n2][k panel][kDepth][panel]               one thread, one (k block, c block)
//                M [n2][tile of chunk][kWidth]                one thread, one k block
// wgrad:         V [c panel][n2][tile of chunk][panel]        one chunk, all channels
//                U [k block][n2][tile of chunk][kRowStride]   one chunk, all output channels
//                M [n2][kRows][kWidth]                        one thread, one (k block, c block)
//
// Every [n2] axis is padded by one cache line: its stride is else often a multiple of 4 KiB, and
// the n2 stores of a transform would fall into one set of the first cache level.
#pragma once
#include <cstdint>

#include "../common/conv_problem.h"

namespace fastconv::cpu::winograd {

constexpr int64_t kLine = 64;

FC_HOST_DEVICE constexpr int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Reduction depth of one product block: 64 floats. U of a block (36 * 64 * 32 floats) is 288 KiB,
// which stays in a second-level cache of 512 KiB while all tiles pass.
FC_HOST_DEVICE constexpr int64_t depth(int bytes) { return 256 / bytes; }
// Output channels (wgrad: input channels) of one product block: 32 floats.
FC_HOST_DEVICE constexpr int64_t width(int bytes) { return 128 / bytes; }
// wgrad: output channels of one block, and their stride: 72 floats, an odd number of half lines, so
// that rows of successive tiles spread over all cache sets.
FC_HOST_DEVICE constexpr int64_t rows(int bytes) { return 256 / bytes; }
FC_HOST_DEVICE constexpr int64_t row_stride(int bytes) { return 288 / bytes; }

// wgrad: tiles of one product, so that a panel of each operand stays in the first cache level.
constexpr int64_t kWgradDepth = 128;

FC_HOST_DEVICE constexpr int64_t pad(int bytes) { return kLine / bytes; }

// Stride of the [n2] axis.
FC_HOST_DEVICE constexpr int64_t v_step(int64_t tiles, int bytes) {
  return tiles * depth(bytes) + pad(bytes);
}
FC_HOST_DEVICE constexpr int64_t m_step(int64_t tiles, int bytes) {
  return tiles * width(bytes) + pad(bytes);
}
FC_HOST_DEVICE constexpr int64_t u_step(int bytes) {
  return depth(bytes) * width(bytes) + pad(bytes);
}
// wgrad; `panel` is the instruction set's, at most width().
FC_HOST_DEVICE constexpr int64_t wgrad_v_step(int64_t tiles, int64_t panel, int bytes) {
  return tiles * panel + pad(bytes);
}
FC_HOST_DEVICE constexpr int64_t wgrad_u_step(int64_t tiles, int bytes) {
  return tiles * row_stride(bytes) + pad(bytes);
}
FC_HOST_DEVICE constexpr int64_t wgrad_m_step(int bytes) {
  return rows(bytes) * width(bytes) + pad(bytes);
}
// One vector of at most 64 bytes for each pixel of a strip (6 x (16 * 4 + 2), or 4 x 64 and as much
// of a residual) or each of the 9 taps of depth() filters, the largest.
constexpr int64_t kStageBytes = 9 * 64 * 64;

}  // namespace fastconv::cpu::winograd
