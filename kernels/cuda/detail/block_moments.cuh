// Moments (moments.cuh) of every channel of a block's outputs, from y as the block has stored it.
//
// A pass of its own behind the stores, from L1 and L2 where they have just come to lie: not a byte
// more from DRAM but the moments, 16 per channel and block, and no register in the kernel's main
// part, which most of these kernels have none to spare of. It is one branch that a whole grid
// answers alike, and it reads what was stored, rounded, and put right at borders. A load and some
// ten instructions per VEC outputs, beside the address.
//
// A warp takes LANES groups of VEC channels side by side, and 32 / LANES outputs at a time: LANES
// is 1 where neighbouring outputs of a channel are neighbours in memory (NCHW).
//
// Deterministic: which values a thread adds, and how threads' sums add, follow from the block
// alone.
#pragma once
#include "epilogue.cuh"
#include "moments.cuh"

namespace fastconv::cuda {

// Where blocks leave moments: of channel k in tile t to to[k * tiles + t].
template <class A>
struct MomentTiles {
  CountedMoment<A>* to;  // null: nobody asks
  int64_t tiles;
};

// at(c, i): where output i of the block's channel c lies (VEC > 1: of channels c to c + VEC - 1,
// aligned to all of them), or null where there is none; of output 0 there is one. put(c): where the
// moments of channel c go. The threads that stored the outputs take part, numbered `thread`, behind
// a barrier of theirs; their number is a multiple of 32.
template <int LANES, int VEC, class scalar_t, class At, class Put>
__device__ __forceinline__ void stored_moments(int channels, int outputs, int thread, int threads,
                                               const At& at, const Put& put) {
  using A = acc_t<scalar_t>;
  constexpr int SLOTS = 32 / LANES, TOGETHER = VEC > 4 ? 2 : 4;  // loads under way
  const int lane = thread % 32, slot = lane / LANES;
  const auto load = [](const scalar_t* from, A(&to)[VEC]) {
    if constexpr (VEC == 1)
      to[0] = to_acc(*from);
    else
      load_aligned(from, to);
  };
#pragma unroll 1
  for (int c0 = thread / 32 * (LANES * VEC); c0 < channels; c0 += threads / 32 * (LANES * VEC)) {
    const int own = c0 + lane % LANES * VEC, c = min(own, channels - VEC);
    MomentSums<A> s[VEC];
    A first[VEC];
    load(at(c, 0), first);
#pragma unroll
    for (int v = 0; v < VEC; ++v) s[v].start(first[v]);
    int count = 0;
#pragma unroll 1
    for (int i = slot; i < outputs; i += TOGETHER * SLOTS) {
      A value[TOGETHER][VEC];
      bool exists[TOGETHER];
#pragma unroll
      for (int j = 0; j < TOGETHER; ++j) {
        const int output = i + j * SLOTS;
        const scalar_t* const from = output < outputs ? at(c, output) : nullptr;
        exists[j] = from != nullptr;
#pragma unroll
        for (int v = 0; v < VEC; ++v) value[j][v] = A(0);
        if (exists[j]) load(from, value[j]);
      }
#pragma unroll
      for (int j = 0; j < TOGETHER; ++j) {
        count += exists[j];
#pragma unroll
        for (int v = 0; v < VEC; ++v) s[v].add(value[j][v], exists[j]);
      }
    }
#pragma unroll
    for (int mask = LANES; mask < 32; mask *= 2) {
      count += __shfl_xor_sync(0xffffffffu, count, mask);
#pragma unroll
      for (int v = 0; v < VEC; ++v) s[v].add_lane(mask);
    }
    if (slot != 0 || own >= channels) continue;
    const A inverse_count = A(1) / static_cast<A>(count);
#pragma unroll
    for (int v = 0; v < VEC; ++v)
      *put(own + v) = CountedMoment<A>{s[v].first, s[v].offset(inverse_count),
                                       s[v].m2(inverse_count), static_cast<A>(count)};
  }
}

// The same by all threads of a block.
template <int LANES, int VEC, class scalar_t, class At, class Put>
__device__ __forceinline__ void block_moments(int channels, int outputs, int thread, int threads,
                                              const At& at, const Put& put) {
  __syncthreads();  // what the others have stored
  stored_moments<LANES, VEC, scalar_t>(channels, outputs, thread, threads, at, put);
}

}  // namespace fastconv::cuda
