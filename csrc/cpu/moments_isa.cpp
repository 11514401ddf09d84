// Mean and sum of squares about it of a piece of y that a convolution has just stored and that the
// first or second cache level still holds, so that batch normalisation in training need not read y
// again from memory.
//
//   centre = sum of y / n,  mean = centre + sum of (y - centre) / n
//   m2 = sum of (y - centre)^2 - (sum of (y - centre))^2 / n
//
// Twice through the piece: as in the pass of its own (norm.h), a mean far from zero costs no
// digits. Values are read as they were stored, rounded. Pieces of a block are merged in order, by
// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979.
#include "epilogue_isa.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class A>
using vec_t = typename Simd<A>::vec;

constexpr int kPlanes = 16;        // channels whose sums are added up across their lanes together
constexpr int kVectors = 4;        // of neighbouring channels in flight
constexpr int kMostChannels = 64;  // at a time

template <class A>
struct Sums {
  A centre[kMostChannels], rest[kMostChannels], square[kMostChannels];
};

// Neighbouring channels are vectors, `live` of the last one's lanes; the first time sums of y, the
// second time those about a centre.
template <class T, int U, bool kWhole, bool kCentred>
FC_INLINE void add_pixels(const MomentsPiece& p, const T* y, const vec_t<acc_t<T>> (&centre)[U],
                          vec_t<acc_t<T>> (&sum)[U], vec_t<acc_t<T>> (&square)[U], int64_t live) {
  constexpr int lanes = Simd<acc_t<T>>::lanes;
  T few[lanes] = {};
  for (int64_t i = 0; i < p.extent[0]; ++i)
    for (int64_t j = 0; j < p.extent[1]; ++j) {
      const T* at = y + i * p.step[0] + j * p.step[1];
      for (int64_t k = 0; k < p.extent[2]; ++k, at += p.step[2]) {
        if (!kWhole)
          for (int64_t l = 0; l < live; ++l) few[l] = at[l];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const vec_t<acc_t<T>> v = vload_acc(kWhole ? at + u * lanes : few);
          const vec_t<acc_t<T>> d = kCentred ? v - centre[u] : v;
          sum[u] += d;
          if (kCentred) square[u] += d * d;
        }
      }
    }
}

template <class T, int U, bool kWhole>
void across_channels(const MomentsPiece& p, const T* y, acc_t<T> count, Sums<acc_t<T>>& to,
                     int64_t live) {
  using vec = vec_t<acc_t<T>>;
  constexpr int lanes = Simd<acc_t<T>>::lanes;
  vec centre[U] = {}, sum[U] = {}, rest[U] = {}, square[U] = {};
  add_pixels<T, U, kWhole, false>(p, y, centre, sum, square, live);
  for (int u = 0; u < U; ++u) centre[u] = sum[u] / vsplat(count);
  add_pixels<T, U, kWhole, true>(p, y, centre, rest, square, live);
  for (int u = 0; u < U; ++u) {
    vstore(to.centre + u * lanes, centre[u]);
    vstore(to.rest + u * lanes, rest[u]);
    vstore(to.square + u * lanes, square[u]);
  }
}

// One channel's pixels are vectors.
template <class T, bool kCentred>
FC_INLINE void add_plane(const MomentsPiece& p, const T* y, acc_t<T> about, acc_t<T>* to_sum,
                         acc_t<T>* to_square) {
  using A = acc_t<T>;
  using vec = vec_t<A>;
  constexpr int lanes = Simd<A>::lanes;
  const int64_t n = p.extent[2], step = p.step[2];
  const vec centre = vsplat(about);
  vec sum[2] = {}, square[2] = {};
  const auto add = [&](int u, const vec& v) {
    const vec d = kCentred ? v - centre : v;
    sum[u] += d;
    if (kCentred) square[u] += d * d;
  };
  const auto add_some = [&](const vec& v, const typename Simd<A>::mask& which) {
    const vec d = vkeep<A>(kCentred ? v - centre : v, which);
    sum[0] += d;
    if (kCentred) square[0] += d * d;
  };
  const int live = static_cast<int>(n % lanes);
  const auto fresh = ~vfirst<A>(lanes - live);  // of a run's last vector, which overlaps
  const auto first = vfirst<A>(live);
  for (int64_t i = 0; i < p.extent[0]; ++i)
    for (int64_t j = 0; j < p.extent[1]; ++j) {
      const T* at = y + i * p.step[0] + j * p.step[1];
      int64_t k = 0;
      if (step == 1 && n >= lanes) {
        for (; k + 2 * lanes <= n; k += 2 * lanes) {
          add(0, vload_acc(at + k));
          add(1, vload_acc(at + k + lanes));
        }
        if (k + lanes <= n) {
          add(0, vload_acc(at + k));
          k += lanes;
        }
        if (k < n) add_some(vload_acc(at + n - lanes), fresh);
        continue;
      }
      A buffer[lanes];
      for (; k + lanes <= n; k += lanes) {
        load_run(at + k * step, step, buffer, lanes);
        add(0, vload(buffer));
      }
      if (k == n) continue;
      for (int l = 0; l < lanes; ++l) buffer[l] = l < live ? to_acc(at[(k + l) * step]) : A(0);
      add_some(vload(buffer), first);
    }
  vstore(to_sum, sum[0] + sum[1]);
  if (kCentred) vstore(to_square, square[0] + square[1]);
}

template <class T>
void along_planes(const MomentsPiece& p, const T* y, int64_t channels, acc_t<T> count,
                  Sums<acc_t<T>>& to) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  A sum[kPlanes * lanes], square[kPlanes * lanes];
  for (int64_t c = 0; c < channels; ++c)
    add_plane<T, false>(p, y + c * p.channel_step, A(0), sum + c * lanes, square);
  sum_lanes(sum, channels, to.centre);
  for (int64_t c = 0; c < channels; ++c) to.centre[c] /= count;
  for (int64_t c = 0; c < channels; ++c)
    add_plane<T, true>(p, y + c * p.channel_step, to.centre[c], sum + c * lanes,
                       square + c * lanes);
  sum_lanes(sum, channels, to.rest);
  sum_lanes(square, channels, to.square);
}

// The sums of some channels to mean and m2, where `before` pixels are in already.
template <class A>
void merge(const Sums<A>& sums, int64_t channels, double count, double before, double* mean,
           double* m2) {
  const double inverse = 1 / count, share = count / (before + count);
  for (int64_t c = 0; c < channels; ++c) {
    const double rest = static_cast<double>(sums.rest[c]);
    const double here = static_cast<double>(sums.centre[c]) + rest * inverse;
    const double about = static_cast<double>(sums.square[c]) - rest * rest * inverse;
    const double delta = before > 0 ? here - mean[c] : 0;
    mean[c] = before > 0 ? mean[c] + delta * share : here;
    m2[c] = (before > 0 ? m2[c] : 0) + about + delta * delta * (before * share);
  }
}

// Runs that follow one another without a gap are one run.
MomentsPiece joined(MomentsPiece p) {
  for (int i = 1; i >= 0; --i) {
    if (p.extent[i] > 1 && p.step[i] != p.extent[2] * p.step[2]) break;
    p.extent[2] *= p.extent[i];
    p.extent[i] = 1;
  }
  return p;
}

template <class T>
void add_typed(const MomentsPiece& piece, const Moments& to, int64_t block, int64_t channel,
               int64_t before) {
  using A = acc_t<T>;
  constexpr int lanes = Simd<A>::lanes;
  const MomentsPiece p = joined(piece);
  const T* y = static_cast<const T*>(p.y);
  const int64_t pixels = p.extent[0] * p.extent[1] * p.extent[2];
  const A count = static_cast<A>(pixels);
  const double n = static_cast<double>(pixels), done = static_cast<double>(before);
  double *mean = to.mean + block * to.K + channel, *m2 = to.m2 + block * to.K + channel;
  Sums<A> sums;
  int64_t c = 0;
  if (p.channel_step == 1 && to.K > 1) {
    // A channel's sum is the same in whichever vector it is: tasks of other channels, the same
    // bits.
    for (; c + kVectors * lanes <= p.channels; c += kVectors * lanes) {
      across_channels<T, kVectors, true>(p, y + c, count, sums, lanes);
      merge(sums, kVectors * lanes, n, done, mean + c, m2 + c);
    }
    for (; c + lanes <= p.channels; c += lanes) {
      across_channels<T, 1, true>(p, y + c, count, sums, lanes);
      merge(sums, lanes, n, done, mean + c, m2 + c);
    }
    if (c < p.channels) {
      across_channels<T, 1, false>(p, y + c, count, sums, p.channels - c);
      merge(sums, p.channels - c, n, done, mean + c, m2 + c);
    }
  } else {
    for (; c < p.channels; c += kPlanes) {
      const int64_t some = kPlanes < p.channels - c ? kPlanes : p.channels - c;
      along_planes(p, y + c * p.channel_step, some, count, sums);
      merge(sums, some, n, done, mean + c, m2 + c);
    }
  }
  if (channel == 0) to.count[block] = done + n;
}

}  // namespace

// Specialised, not instantiated: an instance would be a weak symbol.
#define FC_ADD_MOMENTS(T)                                                          \
  template <>                                                                      \
  void add_moments<T>(const MomentsPiece& piece, const Moments& to, int64_t block, \
                      int64_t channel, int64_t before) {                           \
    add_typed<T>(piece, to, block, channel, before);                               \
  }
FC_ADD_MOMENTS(float)
FC_ADD_MOMENTS(bf16)
FC_ADD_MOMENTS(f16)
#if FC_VEC_BYTES < 64  // see isa.h
FC_ADD_MOMENTS(double)
#endif

extern const bool is_built;  // isa.cpp asks which sets there are
const bool is_built = true;

}  // namespace fastconv::cpu::FC_ISA
