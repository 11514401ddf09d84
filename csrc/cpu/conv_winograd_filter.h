// Filters to vectors of output channels: taps[c][9][lane] for one vector of output channels and
// a run of input channels, from weights of any strides and dtype.
#pragma once
#include "conv_winograd_vector.h"

namespace fastconv::cpu::FC_ISA {
namespace {

template <class T>
struct FilterView {  // at the first output channel of a vector
  const T* data;
  int64_t k, c, r, s;  // strides
  int lanes;           // valid output channels
};

template <class T>
FC_INLINE void gather_taps(const FilterView<T>& f, int64_t c_begin, int64_t c_end, acc_t<T>* taps) {
  constexpr int L = Lanes<T>::value;
  for (int64_t c = c_begin; c < c_end; ++c)
    for (int t = 0; t < 9; ++t) {
      const T* p = f.data + c * f.c + t / 3 * f.r + t % 3 * f.s;
      acc_t<T>* to = taps + (c * 9 + t) * L;
      for (int l = 0; l < L; ++l) to[l] = l < f.lanes ? to_acc(p[l * f.k]) : acc_t<T>(0);
    }
}

// taps[c][t][L] for c in [0, count).
template <class T>
void load_taps(const FilterView<T>& f, int64_t count, acc_t<T>* taps) {
  constexpr int L = Lanes<T>::value;
  if (f.lanes == L && f.k == 1) {
    for (int64_t c = 0; c < count; ++c)
      for (int t = 0; t < 9; ++t)
        vstore(taps + (c * 9 + t) * L, vload_acc(f.data + c * f.c + t / 3 * f.r + t % 3 * f.s));
    return;
  }
  int64_t c = 0;
  const int64_t step = f.s;  // 1, or -1 when the filter is flipped
  const bool dense = f.r == 3 * step && (step == 1 || step == -1);
  const T* corner = step < 0 ? f.data - 8 : f.data;  // the tap at the lowest address
  if (f.lanes == L && dense && f.c == 9) {
    // L filters of one output channel are 9 whole vectors.
    for (; c + L <= count; c += L)
      for (int part = 0; part < 9; ++part) {
        acc_vec<T> v[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) v[l] = vload_acc(corner + l * f.k + c * 9 + part * L);
        transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) {
          const int element = part * L + l;
          const int t = element % 9;
          vstore(taps + ((c + element / 9) * 9 + (step < 0 ? 8 - t : t)) * L, v[l]);
        }
      }
  } else if (f.lanes == L && dense && L <= 8) {
    for (; c < count; ++c) {
      acc_t<T>* to = taps + c * 9 * L;
      for (int part = 0; part + L <= 9; part += L) {
        acc_vec<T> v[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) v[l] = vload_acc(corner + l * f.k + c * f.c + part);
        transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) vstore(to + (step < 0 ? 8 - part - l : part + l) * L, v[l]);
      }
      for (int t = 9 / L * L; t < 9; ++t)
        for (int l = 0; l < L; ++l)
          to[(step < 0 ? 8 - t : t) * L + l] = to_acc(corner[l * f.k + c * f.c + t]);
    }
  } else if (f.lanes == L && f.c == 1) {
    for (; c + L <= count; c += L)
      for (int t = 0; t < 9; ++t) {
        acc_vec<T> v[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l)
          v[l] = vload_acc(f.data + l * f.k + c + t / 3 * f.r + t % 3 * f.s);
        transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) vstore(taps + ((c + l) * 9 + t) * L, v[l]);
      }
  }
  gather_taps(f, c, count, taps);
}

}  // namespace
}  // namespace fastconv::cpu::FC_ISA
