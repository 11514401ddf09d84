// Pooling with the channels innermost: y[n,o,p,q,:] reduces the window's vectors of C.
//
// Forward: every output reads its R*S taps in row-major order, up to four vectors of channels at a
// time. Backward is a gather: every input adds what the outputs that reach it send back, in the
// order of the outputs, so nothing is added twice or by two threads.
// Layouts: dense NDHWC. Bytes: x and y once from memory (a row is read R/stride times from the
// cache). FLOPs: R*S per output forward, R*S / stride^2 per input backward. Bound by memory.
// Deterministic.
#include "pool_lanes.h"

namespace fastconv::cpu::FC_ISA {
namespace {

// `part` vectors hold fewer channels than lanes.
template <class T, bool PART>
FC_INLINE vec_t<acc_t<T>> get(const T* p, int64_t n) {
  using A = acc_t<T>;
  if (!PART) return vload_acc(p);
  A a[Simd<A>::lanes] = {};
  for (int64_t i = 0; i < n; ++i) a[i] = to_acc(p[i]);
  return vload(a);
}
template <class T, bool PART>
FC_INLINE void put(T* p, vec_t<acc_t<T>> v, int64_t n) {
  if (!PART) return vstore_acc(p, v);
  for (int64_t i = 0; i < n; ++i) from_acc(v[i], p + i);
}
template <class A, bool PART>
FC_INLINE mask_t<A> get_bytes(const uint8_t* p, int64_t n) {
  if (!PART) return load_bytes<A>(p);
  mask_t<A> m{};
  for (int64_t i = 0; i < n; ++i) m[i] = p[i];
  return m;
}

// Calls f.template block<U, PART>(first channel, channels) so that all channels are covered; the
// last vector overlaps the one before it.
template <class A, class F>
FC_INLINE void over_channels(int64_t C, const F& f) {
  constexpr int64_t lanes = Simd<A>::lanes;
  int64_t c = 0;
  if (C < lanes) return f.template block<1, true>(0, C);
  for (; c + 4 * lanes <= C; c += 4 * lanes) f.template block<4, false>(c, lanes);
  for (; c + lanes <= C; c += lanes) f.template block<1, false>(c, lanes);
  if (c < C) f.template block<1, false>(C - lanes, lanes);
}

// One output pixel.
template <class T, PoolKind KIND, bool INDEX>
struct Window {
  using A = acc_t<T>;
  const CpuPoolCall& call;
  const T* x;  // image [D, H, W, C]
  PoolTaps t, r, s;
  int64_t d0, h0, w0;  // the window's origin
  A count;
  T* y;            // [C]
  int64_t output;  // of y in `index`

  template <int U, bool PART>
  FC_INLINE void block(int64_t c, int64_t n) const {
    const PoolProblem& p = call.p;
    constexpr int64_t lanes = Simd<A>::lanes;
    const int64_t R = p.kernel[1], S = p.kernel[2];
    const int64_t step = p.dilation[2] * p.C;
    vec_t<A> acc[U];
    mask_t<A> arg[U];
    for (int u = 0; u < U; ++u) {
      acc[u] = vsplat(identity_of(KIND, A()));
      arg[u] = lanes_of<A>((t.first * R + r.first) * S + s.first);
    }
    for (int64_t i = t.first; i < t.last; ++i)
      for (int64_t j = r.first; j < r.last; ++j) {
        const int64_t d = d0 + i * p.dilation[0], h = h0 + j * p.dilation[1];
        const T* row = x + (((d * p.in[1] + h) * p.in[2]) + w0) * p.C + c;
        for (int64_t k = s.first; k < s.last; ++k) {
          const mask_t<A> tap = lanes_of<A>((i * R + j) * S + k);
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) {
            const vec_t<A> v = get<T, PART>(row + k * step + u * lanes, n);
            if (KIND == PoolKind::kMax) {
              const mask_t<A> over = takes_over<A>(v, acc[u]);
              acc[u] = pick<A>(over, v, acc[u]);
              if (INDEX) arg[u] = over ? tap : arg[u];
            } else {
              acc[u] += KIND == PoolKind::kSum ? v : vpow<A>(v, call.power);
            }
          }
        }
      }
    for (int u = 0; u < U; ++u) {
      vec_t<A> v = acc[u];
      if (KIND != PoolKind::kMax) v = v / vsplat(count);
      if (KIND == PoolKind::kLp) v = vroot<A>(v * vsplat(A(call.scale)), call.power);
      put<T, PART>(y + c + u * lanes, v, n);
      if (!INDEX) continue;
      const int64_t at = output + c + u * lanes;
      if (call.index_kind == PoolIndex::kByte) {
        uint8_t* bytes = static_cast<uint8_t*>(call.index) + at;
        if (PART)
          for (int64_t l = 0; l < n; ++l) bytes[l] = static_cast<uint8_t>(arg[u][l]);
        else
          store_bytes<A>(bytes, arg[u]);
      } else {
        int64_t* places = static_cast<int64_t*>(call.index) + at;
        for (int64_t l = 0; l < n; ++l) places[l] = place(arg[u][l]);
      }
    }
  }

  FC_INLINE int64_t place(int64_t tap) const {
    const PoolProblem& p = call.p;
    const int64_t S = p.kernel[2], RS = p.kernel[1] * S;
    const int64_t d = d0 + tap / RS * p.dilation[0];
    const int64_t h = h0 + tap / S % p.kernel[1] * p.dilation[1];
    return (d * p.in[1] + h) * p.in[2] + w0 + tap % S * p.dilation[2];
  }
};

template <class T, PoolKind KIND, bool INDEX>
void forward(const CpuPoolCall& call, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const PoolProblem& p = call.p;
  for (int64_t row = begin; row < end; ++row) {  // [N, O, P]
    const int64_t j = row % p.out[1], o = row / p.out[1] % p.out[0];
    const int64_t n = row / p.out[1] / p.out[0];
    const T* x = static_cast<const T*>(call.x) + n * p.in_size() * p.C;
    const PoolTaps t = pool_taps(p, 0, o), r = pool_taps(p, 1, j);
    const double rows = KIND == PoolKind::kMax ? 1 : call.count[0][o] * call.count[1][j];
    for (int64_t q = 0; q < p.out[2]; ++q) {
      const int64_t at = (row * p.out[2] + q) * p.C;
      const Window<T, KIND, INDEX> window{
          call,
          x,
          t,
          r,
          pool_taps(p, 2, q),
          p.origin(0, o),
          p.origin(1, j),
          p.origin(2, q),
          KIND == PoolKind::kMax ? A(1) : static_cast<A>(rows * call.count[2][q]),
          static_cast<T*>(call.result) + at,
          at};
      over_channels<A>(p.C, window);
    }
  }
}

// One input pixel.
template <class T, PoolKind KIND>
struct Pixel {
  using A = acc_t<T>;
  const CpuPoolCall& call;
  int64_t n, d, h, w;
  PoolOutputs o, r, q;
  int64_t input;  // of the pixel in x and dx

  template <int U, bool PART>
  FC_INLINE void block(int64_t c, int64_t m) const {
    const PoolProblem& p = call.p;
    constexpr int64_t lanes = Simd<A>::lanes;
    vec_t<A> acc[U] = {};
    for (int64_t i = o.first; i < o.last; ++i) {
      const int64_t t = pool_tap_on(p, 0, i, d);
      if (t < 0) continue;
      for (int64_t j = r.first; j < r.last; ++j) {
        const int64_t rr = pool_tap_on(p, 1, j, h);
        if (rr < 0) continue;
        for (int64_t k = q.first; k < q.last; ++k) {
          const int64_t s = pool_tap_on(p, 2, k, w);
          if (s < 0) continue;
          const int64_t at = (((n * p.out[0] + i) * p.out[1] + j) * p.out[2] + k) * p.C + c;
          const T* dy = static_cast<const T*>(call.dy) + at;
          if (KIND == PoolKind::kMax) {
            const uint8_t* index = static_cast<const uint8_t*>(call.index) + at;
            const mask_t<A> tap = lanes_of<A>((t * p.kernel[1] + rr) * p.kernel[2] + s);
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
              const mask_t<A> mine = get_bytes<A, PART>(index + u * lanes, m) == tap;
              acc[u] += vkeep<A>(get<T, PART>(dy + u * lanes, m), mine);
            }
          } else {
            const double count = call.count[0][i] * call.count[1][j] * call.count[2][k];
            const vec_t<A> share = vsplat(static_cast<A>(call.scale / count));
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
              vec_t<A> g = get<T, PART>(dy + u * lanes, m);
              if (KIND == PoolKind::kLp) {
                const T* y = static_cast<const T*>(call.y) + at;
                g = lp_slope<A>(g, get<T, PART>(y + u * lanes, m), call.power);
              }
              acc[u] += g * share;
            }
          }
        }
      }
    }
    T* dx = static_cast<T*>(call.result) + input + c;
    for (int u = 0; u < U; ++u) {
      if (KIND == PoolKind::kLp) {
        const T* x = static_cast<const T*>(call.x) + input + c + u * lanes;
        acc[u] = acc[u] * vpow<A>(get<T, PART>(x, m), call.power - 1);
      }
      put<T, PART>(dx + u * lanes, acc[u], m);
    }
  }
};

template <class T, PoolKind KIND>
void backward(const CpuPoolCall& call, int64_t begin, int64_t end) {
  const PoolProblem& p = call.p;
  for (int64_t row = begin; row < end; ++row) {  // [N, D, H]
    const int64_t h = row % p.in[1], d = row / p.in[1] % p.in[0], n = row / p.in[1] / p.in[0];
    const PoolOutputs o = pool_outputs(p, 0, d), r = pool_outputs(p, 1, h);
    for (int64_t w = 0; w < p.in[2]; ++w) {
      const Pixel<T, KIND> pixel{
          call, n, d, h, w, o, r, pool_outputs(p, 2, w), (row * p.in[2] + w) * p.C};
      over_channels<acc_t<T>>(p.C, pixel);
    }
  }
}

template <class T>
void run_typed(const CpuPoolCall& c, int64_t begin, int64_t end) {
  constexpr auto kMax = PoolKind::kMax, kSum = PoolKind::kSum, kLp = PoolKind::kLp;
  if (c.backward) {
    if (c.kind == kMax) return backward<T, kMax>(c, begin, end);
    if (c.kind == kSum) return backward<T, kSum>(c, begin, end);
    return backward<T, kLp>(c, begin, end);
  }
  if (c.kind == kSum) return forward<T, kSum, false>(c, begin, end);
  if (c.kind == kLp) return forward<T, kLp, false>(c, begin, end);
  if (c.index_kind == PoolIndex::kNone) return forward<T, kMax, false>(c, begin, end);
  return forward<T, kMax, true>(c, begin, end);
}

int64_t tasks(const CpuPoolCall& c, int) {
  const int64_t* rows = c.backward ? c.p.in : c.p.out;
  return c.p.N * rows[0] * rows[1];
}
int64_t scratch(const CpuPoolCall&) { return 0; }
void run(const CpuPoolCall& c, int64_t begin, int64_t end, int, void*) {
  switch (c.dtype) {
    case DType::kFloat32: return run_typed<float>(c, begin, end);
    case DType::kFloat64: return run_typed<double>(c, begin, end);
    case DType::kBFloat16: return run_typed<bf16>(c, begin, end);
    case DType::kFloat16: return run_typed<f16>(c, begin, end);
  }
}

}  // namespace

extern const PoolTable pool_channels;
const PoolTable pool_channels = {tasks, scratch, run};

}  // namespace fastconv::cpu::FC_ISA
