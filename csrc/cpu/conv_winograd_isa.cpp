// Winograd fprop and dgrad for one instruction set; see conv_winograd.cpp.
#include "conv_winograd.h"
#include "conv_winograd_filter.h"
#include "conv_winograd_gemm.h"
#include "conv_winograd_layout.h"
#include "conv_winograd_tile.h"
#include "epilogue_isa.h"

namespace fastconv::cpu::FC_ISA {
namespace {

using winograd::depth;
using winograd::m_step;
using winograd::u_step;
using winograd::v_step;
using winograd::width;

template <class Wino, class T>
void transform_in(const WinogradPlan& p, const WinogradChunk& chunk, int64_t begin, int64_t end,
                  void* scratch) {
  using A = acc_t<T>;
  const ChannelBlocks<A> v{static_cast<A*>(p.v), depth(sizeof(A)), depth(sizeof(A)),
                           v_step(chunk.tiles, sizeof(A))};
  const StripSource<T> x{p.in, p.C, p.in_h, p.in_w, p.pad_h, p.pad_w};
  transform_strips<InputOf<Wino>, Wino::kOut, T>(p, chunk, x, v, begin, end,
                                                 static_cast<A*>(scratch));
}

// U [n2][panel][depth][NR] of output channels [k, k + panels * NR) and input channels [c, c +
// count).
template <class Wino, class T>
void transform_filter(const WinogradPlan& p, int64_t k, int64_t panels, int64_t c, int64_t count,
                      acc_t<T>* taps, acc_t<T>* u) {
  using A = acc_t<T>;
  using vec = typename Simd<A>::vec;
  constexpr int L = Lanes<T>::value, n = Wino::kTile, NR = GemmTile<A>::NR;
  constexpr int64_t step = u_step(sizeof(A)), block = depth(sizeof(A));
  for (int64_t first = 0; first < panels * NR; first += L) {
    const int64_t left = p.K - k - first;
    const FilterView<T> view{
        static_cast<const T*>(p.filter) + (k + first) * p.filter_k + c * p.filter_c,
        p.filter_k,
        p.filter_c,
        p.filter_r,
        p.filter_s,
        static_cast<int>(left < 0 ? 0 : (left < L ? left : L))};
    load_taps(view, count, taps);
    A* to = u + first / NR * block * NR + first % NR;
    for (int64_t i = 0; i < count; ++i) {
      nest<FilterOf<Wino>, A>(
          [&](int r, int q) { return vload(taps + (i * 9 + r * 3 + q) * L); },
          [&](int e, int f, vec y) { vstore(to + (e * n + f) * step + i * NR, y); });
    }
  }
}

// M [n2][tile][width] -> out, for output channels [k, k_end).
template <class Wino, class T>
void transform_out(const WinogradPlan& p, const WinogradChunk& chunk, int64_t k, int64_t k_end,
                   const acc_t<T>* m_block, acc_t<T>* stage) {
  using A = acc_t<T>;
  using vec = typename Simd<A>::vec;
  constexpr int L = Lanes<T>::value, n = Wino::kTile, m = Wino::kOut;
  constexpr int64_t row = width(sizeof(A));
  const int64_t step = m_step(chunk.tiles, sizeof(A));
  int64_t pixels_before = 0;
  for (int64_t strip = chunk.strip_begin; strip < chunk.strip_end; ++strip) {
    const Strip s = strip_at(p, strip);
    const int64_t columns = s.tiles * m;
    for (int64_t first = k; first < k_end; first += L) {
      const Plane<T> plane = plane_at<T>(p.out, s.n, first, p.K, p.out_h, p.out_w);
      vec bias{};
      if (p.bias)
        for (int l = 0; l < plane.channels; ++l)
          bias[l] = to_acc(static_cast<const T*>(p.bias)[first + l]);
      const A* from = m_block + (s.first_tile - chunk.tile_begin) * row + first - k;
      for (int64_t t = 0; t < s.tiles; ++t, from += row) {
        nest<OutputOf<Wino>, A>(
            [&](int i, int j) { return vload(from + (i * n + j) * step); },
            [&](int i, int j, vec y) { vstore(stage + (i * columns + t * m + j) * L, y + bias); });
      }
      if (!p.epilogue.plain()) {
        const int64_t pixels = m * columns;
        A* residual = nullptr;  // [m][columns][L], behind the strip
        if (p.epilogue.residual) {
          residual = stage + pixels * L;
          const WinogradView view{const_cast<void*>(p.epilogue.residual),
                                  p.epilogue.residual_at(p.out.n), p.out.c,
                                  p.epilogue.residual_at(p.out.h), p.epilogue.residual_at(p.out.w)};
          load_strip(plane_at<T>(view, s.n, first, p.K, p.out_h, p.out_w), s.y * m, s.x * m, m,
                     columns, residual);
        }
        epilogue_tile(p.epilogue, stage, 0, residual, 0, 1, pixels * L);
      }
      store_strip(plane, s.y * m, s.x * m, m, columns, stage);
    }
    if (p.moments.K == 0) continue;
    const int64_t y = s.y * m, x = s.x * m;
    const int64_t height = m < p.out_h - y ? m : p.out_h - y;
    const int64_t width = columns < p.out_w - x ? columns : p.out_w - x;
    const MomentsPiece piece{
        static_cast<const T*>(p.out.data) + s.n * p.out.n + k * p.out.c + y * p.out.h + x * p.out.w,
        k_end - k,
        p.out.c,
        {1, height, width},
        {0, p.out.h, p.out.w}};
    add_moments<T>(piece, p.moments, chunk.index, p.first_channel + k, pixels_before);
    pixels_before += height * width;
  }
}

template <class Wino, class T>
void products(const WinogradPlan& p, const WinogradChunk& chunk, int64_t begin, int64_t end,
              void* scratch) {
  using A = acc_t<T>;
  constexpr int n2 = Wino::kTile * Wino::kTile;
  constexpr int NR = GemmTile<A>::NR, MR = GemmTile<A>::MR;
  constexpr int64_t block = depth(sizeof(A)), row = width(sizeof(A));
  constexpr int64_t u_stride = u_step(sizeof(A));
  const int64_t v_stride = v_step(chunk.tiles, sizeof(A));
  const int64_t m_stride = m_step(chunk.tiles, sizeof(A));
  A* u = static_cast<A*>(scratch);  // [n2][panel][depth][NR]
  A* m_block = u + n2 * u_stride;   // [n2][tile][width]
  A* stage = m_block + n2 * m_stride;
  for (int64_t panel = begin; panel < end; panel += row / NR) {
    const int64_t panels = end - panel < row / NR ? end - panel : row / NR;
    for (int64_t c = 0; c < p.C; c += block) {
      const int64_t count = p.C - c < block ? p.C - c : block;
      transform_filter<Wino, T>(p, panel * NR, panels, c, count, stage, u);
      const A* v = static_cast<const A*>(p.v) + c / block * n2 * v_stride;
      for (int e = 0; e < n2; ++e) {
        const int64_t groups = (chunk.tiles + MR - 1) / MR;
        for (int64_t g = 0, tile = 0; g < groups; ++g) {
          const int64_t rows = (chunk.tiles - tile) / (groups - g);
          const ProductFn<A> product = kProducts<A, block, 1>.rows[rows - 1];
          for (int64_t j = 0; j < panels; ++j)
            product(count, v + e * v_stride + tile * block, u + e * u_stride + j * block * NR,
                    m_block + e * m_stride + tile * row + j * NR, row, c > 0);
          tile += rows;
        }
      }
    }
    const int64_t k_end = (panel + panels) * NR < p.K ? (panel + panels) * NR : p.K;
    transform_out<Wino, T>(p, chunk, panel * NR, k_end, m_block, stage);
  }
}

}  // namespace

extern const WinogradKernels winograd_kernels;
const WinogradKernels winograd_kernels{
    FC_VEC_BYTES,
    {{transform_in<WinogradF2x2_3x3, float>, FC_FP64(transform_in<WinogradF2x2_3x3, double>),
      transform_in<WinogradF2x2_3x3, bf16>, transform_in<WinogradF2x2_3x3, f16>},
     {transform_in<WinogradF4x4_3x3, float>, FC_FP64(transform_in<WinogradF4x4_3x3, double>),
      transform_in<WinogradF4x4_3x3, bf16>, transform_in<WinogradF4x4_3x3, f16>}},
    {{products<WinogradF2x2_3x3, float>, FC_FP64(products<WinogradF2x2_3x3, double>),
      products<WinogradF2x2_3x3, bf16>, products<WinogradF2x2_3x3, f16>},
     {products<WinogradF4x4_3x3, float>, FC_FP64(products<WinogradF4x4_3x3, double>),
      products<WinogradF4x4_3x3, bf16>, products<WinogradF4x4_3x3, f16>}},
};

}  // namespace fastconv::cpu::FC_ISA
