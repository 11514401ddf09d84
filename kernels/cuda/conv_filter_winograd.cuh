// Filters to Winograd space: U[slab][step][e][slot(k, c)] = (G w G^T)[e], fp32, for fprop and
// dgrad.
//
// A slab is 32 filters of one group, a step 8 of its channels, both filled up with zeros; within a
// point e the order is the one in which the products read (winograd_engine.cuh). One block per slab
// and step, one thread per (filter, channel); through shared memory, so that U is written in full
// lines. Strides are arguments: dgrad passes the axes of k and c exchanged and the taps reversed
// (last tap first, negative strides).
// Bytes: 9 taps in, 4 n*n bytes out per filter and channel (5 to 16 times the weights): bound by
// memory, small beside the convolution for more than a few dozen tiles. Deterministic.
// Not measured on a GPU. Source: Lavin and Gray 2015, arXiv:1509.09308, section 4.
#pragma once
#include "detail/winograd_block.cuh"

namespace fastconv::cuda {

struct WinogradFilterParams {
  int64_t stride_g, stride_k, stride_c;  // elements; k and c as the products name them
  int32_t stride_r, stride_s;
  int32_t K, C;  // of one group
  FastDivmod steps, slabs_per_group;
  uint32_t slab_begin;
};

template <class Wino, class Engine, class scalar_t>
__global__ void __launch_bounds__(kWinogradPoint)
    conv_filter_winograd_kernel(const WinogradFilterParams p, const scalar_t* __restrict__ w,
                                float* __restrict__ u) {
  using Shape = WinogradBlockShape<Wino>;
  constexpr int kTile = Wino::kTile;
  FC_DYN_SHARED(float, shared);  // [point][256]
  uint32_t step, slab_in_group;
  const uint32_t slab = p.slab_begin + p.steps.divmod(blockIdx.x, step);
  const uint32_t group = p.slabs_per_group.divmod(slab, slab_in_group);
  const int m = threadIdx.x % 32, r = threadIdx.x / 32;
  const int32_t k = slab_in_group * kWinogradBlock + m, c = step * kWinogradDepth + r;
  const bool exists = k < p.K && c < p.C;
  const scalar_t* taps =
      w + group * p.stride_g + (exists ? k * p.stride_k + c * p.stride_c : int64_t{0});
  float* const to = shared + Engine::template a_slot<false>(m, r);
  winograd_nest<WinogradFilter<Wino>>(
      [&](int i, int j) { return exists ? to_acc(taps[i * p.stride_r + j * p.stride_s]) : 0.f; },
      [&](int i, int j, float v) { to[(i * kTile + j) * kWinogradPoint] = Engine::operand(v); });
  __syncthreads();
  u += blockIdx.x * static_cast<int64_t>(Shape::kStage);
  for (int i = threadIdx.x * 4; i < Shape::kStage; i += kWinogradPoint * 4)
    *reinterpret_cast<float4*>(u + i) = *reinterpret_cast<const float4*>(shared + i);
}

}  // namespace fastconv::cuda
