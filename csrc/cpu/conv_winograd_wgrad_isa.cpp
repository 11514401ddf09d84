// Winograd wgrad for one instruction set; see conv_winograd.cpp. The tile of dy is the filter of
// F(3x3, 2x2) or F(3x3, 4x4); the products reduce over tiles, in the order of the tiles.
#include "conv_winograd.h"
#include "conv_winograd_gemm.h"
#include "conv_winograd_layout.h"
#include "conv_winograd_tile.h"

namespace fastconv::cpu::FC_ISA {
namespace {

using winograd::row_stride;
using winograd::rows;
using winograd::wgrad_m_step;
using winograd::wgrad_u_step;
using winograd::wgrad_v_step;
using winograd::width;

template <class Wino, class T>
void transform_in(const WinogradPlan& p, const WinogradChunk& chunk, int64_t begin, int64_t end,
                  void* scratch) {
  using A = acc_t<T>;
  constexpr int64_t NR = GemmTile<A>::NR;
  const ChannelBlocks<A> v{static_cast<A*>(p.v), NR, NR, wgrad_v_step(chunk.tiles, NR, sizeof(A))};
  const StripSource<T> x{p.in, p.C, p.in_h, p.in_w, p.pad_h, p.pad_w};
  transform_strips<InputOf<Wino>, Wino::kOut, T>(p, chunk, x, v, begin, end,
                                                 static_cast<A*>(scratch));
}

template <class Wino, class T>
void transform_out(const WinogradPlan& p, const WinogradChunk& chunk, int64_t begin, int64_t end,
                   void* scratch) {
  using A = acc_t<T>;
  const ChannelBlocks<A> u{static_cast<A*>(p.u), rows(sizeof(A)), row_stride(sizeof(A)),
                           wgrad_u_step(chunk.tiles, sizeof(A))};
  const StripSource<T> dy{p.out, p.K, p.out_h, p.out_w, 0, 0};
  transform_strips<WgradFilterOf<Wino>, Wino::kOut, T>(p, chunk, dy, u, begin, end,
                                                       static_cast<A*>(scratch));
}

template <class T>
FC_INLINE void store_taps(const WinogradPlan& p, int64_t k, int64_t c,
                          const acc_vec<T> (&taps)[9]) {
  constexpr int L = Lanes<T>::value;
  T* to = static_cast<T*>(p.filter) + k * p.filter_k + c * p.filter_c;
  const int64_t channels = p.C - c < L ? p.C - c : L;
  for (int t = 0; t < 9; ++t) {
    T* tap = to + t / 3 * p.filter_r + t % 3 * p.filter_s;
    if (p.filter_c == 1 && channels == L) {
      vstore_acc(tap, taps[t]);
      continue;
    }
    acc_t<T> lane[L];
    vstore(lane, taps[t]);
    for (int l = 0; l < channels; ++l) from_acc(lane[l], tap + l * p.filter_c);
  }
}

// M [n2][rows][width] -> dw of output channels [k, k + count) and input channels [c, c_end).
template <class Wino, class T>
void transform_taps(const WinogradPlan& p, const WinogradChunk& chunk, int64_t k, int64_t count,
                    int64_t c, int64_t c_end, const acc_t<T>* m_block) {
  using A = acc_t<T>;
  using vec = typename Simd<A>::vec;
  constexpr int L = Lanes<T>::value, n = Wino::kTile;
  constexpr int64_t step = wgrad_m_step(sizeof(A)), row = width(sizeof(A));
  const int64_t c_padded = winograd::round_up(p.C, row);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t first = c; first < c_end; first += L) {
      const A* from = m_block + i * row + first - c;
      // Sums over the chunks so far: [k][c][9] with the taps of L channels as vectors.
      A* partial = static_cast<A*>(p.partial) + ((k + i) * c_padded + first) * 9;
      vec taps[9];
      nest<WgradOutputOf<Wino>, A>([&](int e, int f) { return vload(from + (e * n + f) * step); },
                                   [&](int r, int s, vec y) { taps[r * 3 + s] = y; });
      if (!chunk.first)
        for (int t = 0; t < 9; ++t) taps[t] += vload(partial + t * L);
      if (chunk.last)
        store_taps<T>(p, k + i, first, taps);
      else
        for (int t = 0; t < 9; ++t) vstore(partial + t * L, taps[t]);
    }
}

template <class Wino, class T>
void products(const WinogradPlan& p, const WinogradChunk& chunk, int64_t begin, int64_t end,
              void* scratch) {
  using A = acc_t<T>;
  constexpr int n2 = Wino::kTile * Wino::kTile;
  constexpr int NR = GemmTile<A>::NR, MR = GemmTile<A>::MR;
  constexpr int64_t block = rows(sizeof(A)), stride = row_stride(sizeof(A));
  constexpr int64_t row = width(sizeof(A)), m_stride = wgrad_m_step(sizeof(A));
  constexpr int64_t depth = winograd::kWgradDepth;
  const int64_t u_stride = wgrad_u_step(chunk.tiles, sizeof(A));
  const int64_t v_stride = wgrad_v_step(chunk.tiles, NR, sizeof(A));
  const int64_t c_blocks = (p.C + row - 1) / row;
  A* m_block = static_cast<A*>(scratch);  // [n2][rows][width]
  for (int64_t task = begin; task < end; ++task) {
    const int64_t k = task / c_blocks * block, c = task % c_blocks * row;
    const int64_t count = p.K - k < block ? p.K - k : block;
    const int64_t c_end = p.C - c < row ? p.C : c + row;
    const A* u = static_cast<const A*>(p.u) + k / block * n2 * u_stride;
    const A* v = static_cast<const A*>(p.v) + c / NR * n2 * v_stride;
    for (int e = 0; e < n2; ++e)
      for (int64_t tile = 0; tile < chunk.tiles; tile += depth) {
        const int64_t tiles = chunk.tiles - tile < depth ? chunk.tiles - tile : depth;
        const int64_t groups = (count + MR - 1) / MR;
        for (int64_t g = 0, i = 0; g < groups; ++g) {
          const int64_t rows_now = (count - i) / (groups - g);
          const ProductFn<A> product = kProducts<A, 1, stride>.rows[rows_now - 1];
          for (int64_t j = 0; j * NR < c_end - c; ++j)
            product(tiles, u + e * u_stride + tile * stride + i,
                    v + j * n2 * v_stride + e * v_stride + tile * NR,
                    m_block + e * m_stride + i * row + j * NR, row, tile > 0);
          i += rows_now;
        }
      }
    transform_taps<Wino, T>(p, chunk, k, count, c, c_end, m_block);
  }
}

}  // namespace

#define FC_WINOGRAD_STEPS(step)                                                \
  {                                                                            \
      {step<WinogradF2x2_3x3, float>, FC_FP64(step<WinogradF2x2_3x3, double>), \
       step<WinogradF2x2_3x3, bf16>, step<WinogradF2x2_3x3, f16>},             \
      {step<WinogradF4x4_3x3, float>, FC_FP64(step<WinogradF4x4_3x3, double>), \
       step<WinogradF4x4_3x3, bf16>, step<WinogradF4x4_3x3, f16>},             \
  }

extern const WinogradWgradKernels winograd_wgrad_kernels;
const WinogradWgradKernels winograd_wgrad_kernels{
    FC_WINOGRAD_STEPS(transform_in), FC_WINOGRAD_STEPS(transform_out), FC_WINOGRAD_STEPS(products)};

}  // namespace fastconv::cpu::FC_ISA
