// A row of the input in phases: entry i of phase j is x[i * stride + j - padding], so that tap s of
// output q is entry q + s * dilation / stride of phase s * dilation % stride, and a vector of
// outputs reads a contiguous vector per tap, whatever the stride.
#pragma once
#include "pool_lanes.h"

namespace fastconv::cpu::FC_ISA {

struct Phases {
  int64_t stride, dilation, padding, width, taps;
  int64_t outputs;  // Q, rounded up to whole vectors
  int64_t length;   // of one phase

  FC_INLINE Phases(const PoolProblem& p, int64_t lanes)
      : stride(p.stride[2]),
        dilation(p.dilation[2]),
        padding(p.padding[2]),
        width(p.in[2]),
        taps(p.kernel[2]),
        outputs((p.out[2] + lanes - 1) / lanes * lanes),
        length(outputs + (taps - 1) * dilation / stride) {}

  FC_INLINE int64_t size() const { return stride * length; }
  FC_INLINE int64_t place(int64_t s) const {
    return s * dilation % stride * length + s * dilation / stride;
  }
  // Whether any tap falls into the phase.
  FC_INLINE bool used(int64_t phase) const {
    if (dilation == 1) return phase < taps;
    for (int64_t s = 0; s < taps && s < stride; ++s)
      if (s * dilation % stride == phase) return true;
    return false;
  }
  // The entries [first, first + count) of a phase are the elements from, from + stride, ... of x.
  struct Run {
    int64_t first, count, from;
  };
  FC_INLINE Run run(int64_t phase) const {
    const int64_t lead = padding - phase;
    const int64_t first = lead <= 0 ? 0 : (lead + stride - 1) / stride;
    const int64_t from = first * stride - lead;
    int64_t count = from >= width ? 0 : (width - from + stride - 1) / stride;
    if (first + count > length) count = length > first ? length - first : 0;
    return {first, count, from};
  }
};

// x [W] to phases; what is not in x becomes `outside`.
template <class T>
FC_INLINE void split_phases(const Phases& ph, const T* x, acc_t<T> outside, acc_t<T>* out) {
  for (int64_t j = 0; j < ph.stride; ++j) {
    if (!ph.used(j)) continue;
    acc_t<T>* phase = out + j * ph.length;
    const Phases::Run run = ph.run(j);
    for (int64_t i = 0; i < run.first && i < ph.length; ++i) phase[i] = outside;
    if (run.count > 0) load_run(x + run.from, ph.stride, phase + run.first, run.count);
    for (int64_t i = run.first + run.count; i < ph.length; ++i) phase[i] = outside;
  }
}

// The even entries of out[0, 2n) from a, the odd ones from b.
template <class A>
FC_INLINE void interleave(const A* a, const A* b, A* out, int64_t n) {
  constexpr int lanes = Simd<A>::lanes;
  mask_t<A> low, high;
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + (i % 2) * lanes;
    high[i] = low[i] + lanes / 2;
  }
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const vec_t<A> x = vload(a + i), y = vload(b + i);
    vstore(out + 2 * i, __builtin_shuffle(x, y, low));
    vstore(out + 2 * i + lanes, __builtin_shuffle(x, y, high));
  }
  for (; i < n; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}

// Phases (every one) back to a row [W]; what lies outside it is dropped, what no tap reaches is 0.
template <class A>
FC_INLINE void join_phases(const Phases& ph, const A* in, A* x) {
  if (ph.stride == 1) {
    const Phases::Run run = ph.run(0);
    for (int64_t i = 0; i < run.from && i < ph.width; ++i) x[i] = 0;
    if (run.count > 0) load_run(in + run.first, 1, x + run.from, run.count);
    for (int64_t i = run.from + run.count; i < ph.width; ++i) x[i] = 0;
    return;
  }
  if (ph.stride == 2) {
    const Phases::Run even = ph.run(0), odd = ph.run(1);
    const Phases::Run& head = even.from == 0 ? even : odd;
    const Phases::Run& tail = even.from == 0 ? odd : even;
    const int64_t pairs = tail.count < head.count ? tail.count : head.count;
    if (head.from == 0 && tail.from == 1) {
      const A* a = in + (even.from == 0 ? 0 : ph.length) + head.first;
      const A* b = in + (even.from == 0 ? ph.length : 0) + tail.first;
      interleave(a, b, x, pairs);
      int64_t i = 2 * pairs;
      if (i < ph.width && head.count > pairs) x[i++] = a[pairs];
      for (; i < ph.width; ++i) x[i] = 0;
      return;
    }
  }
  std::memset(x, 0, ph.width * sizeof(A));
  for (int64_t j = 0; j < ph.stride; ++j) {
    const Phases::Run run = ph.run(j);
    const A* phase = in + j * ph.length + run.first;
    for (int64_t i = 0; i < run.count; ++i) x[run.from + i * ph.stride] = phase[i];
  }
}

}  // namespace fastconv::cpu::FC_ISA
