// Pooling by explicit places (pool_places.h).
// Bytes: one element and one index per output, from anywhere in a plane. FLOPs: one per output
// (integers: one compare per tap). Bound by the latency of the cache. Deterministic.
#include "pool_places.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"

namespace fastconv::cpu {
namespace {

struct Plane {
  int64_t in, out, step;
};
Plane plane_of(const CpuPoolCall& call, int64_t index) {
  const PoolProblem& p = call.p;
  if (!call.channels_last) return {index * p.in_size(), index * p.out_size(), 1};
  const int64_t n = index / p.C, c = index % p.C;
  return {n * p.in_size() * p.C + c, n * p.out_size() * p.C + c, p.C};
}

template <class F>
void over_planes(const CpuPoolCall& call, const F& f) {
  const PoolProblem& p = call.p;
  const int64_t planes = p.N * p.C;
  if (planes * p.out_size() < 4096) {
    for (int64_t i = 0; i < planes; ++i) f(plane_of(call, i));
    return;
  }
  parallel_for(planes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(plane_of(call, i));
  });
}

// Calls f(output, o, j, q) over one plane's outputs.
template <class F>
void over_outputs(const PoolProblem& p, const F& f) {
  int64_t i = 0;
  for (int64_t o = 0; o < p.out[0]; ++o)
    for (int64_t j = 0; j < p.out[1]; ++j)
      for (int64_t q = 0; q < p.out[2]; ++q) f(i++, o, j, q);
}

int64_t place_of_tap(const PoolProblem& p, int64_t o, int64_t j, int64_t q, int64_t tap) {
  const int64_t S = p.kernel[2], R = p.kernel[1];
  const int64_t d = p.origin(0, o) + tap / (R * S) * p.dilation[0];
  const int64_t h = p.origin(1, j) + tap / S % R * p.dilation[1];
  const int64_t w = p.origin(2, q) + tap % S * p.dilation[2];
  return (d * p.in[1] + h) * p.in[2] + w;
}

template <class T>
void max_of_integers(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.result);
  over_planes(call, [&](const Plane& plane) {
    over_outputs(p, [&](int64_t i, int64_t o, int64_t j, int64_t q) {
      const PoolTaps ts = pool_taps(p, 0, o), rs = pool_taps(p, 1, j), ss = pool_taps(p, 2, q);
      T best = std::numeric_limits<T>::lowest();
      int64_t arg = (ts.first * p.kernel[1] + rs.first) * p.kernel[2] + ss.first;
      for (int64_t t = ts.first; t < ts.last; ++t)
        for (int64_t r = rs.first; r < rs.last; ++r)
          for (int64_t s = ss.first; s < ss.last; ++s) {
            const int64_t tap = (t * p.kernel[1] + r) * p.kernel[2] + s;
            const T v = x[plane.in + place_of_tap(p, o, j, q, tap) * plane.step];
            if (v > best) best = v, arg = tap;
          }
      const int64_t at = plane.out + i * plane.step;
      y[at] = best;
      if (call.index_kind == PoolIndex::kLong)
        static_cast<int64_t*>(call.index)[at] = place_of_tap(p, o, j, q, arg);
      else if (call.index_kind == PoolIndex::kByte)
        static_cast<uint8_t*>(call.index)[at] = static_cast<uint8_t>(arg);
    });
  });
}

template <class T>
void gather(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.result);
  over_planes(call, [&](const Plane& plane) {
    over_outputs(p, [&](int64_t i, int64_t o, int64_t j, int64_t q) {
      const int64_t at = plane.out + i * plane.step;
      const int64_t place =
          call.index_kind == PoolIndex::kLong
              ? static_cast<const int64_t*>(call.index)[at]
              : place_of_tap(p, o, j, q, static_cast<const uint8_t*>(call.index)[at]);
      y[at] = place >= 0 && place < p.in_size() ? x[plane.in + place * plane.step] : T(0);
    });
  });
}

template <class T, class A>
void scatter(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const T* dy = static_cast<const T*>(call.dy);
  T* dx = static_cast<T*>(call.result);
  const int64_t* index = static_cast<const int64_t*>(call.index);
  over_planes(call, [&](const Plane& plane) {
    std::vector<A> sum(p.in_size(), A(0));
    for (int64_t i = 0; i < p.out_size(); ++i) {
      const int64_t at = plane.out + i * plane.step, place = index[at];
      if (place >= 0 && place < p.in_size()) sum[place] += static_cast<A>(dy[at]);
    }
    for (int64_t i = 0; i < p.in_size(); ++i)
      dx[plane.in + i * plane.step] = static_cast<T>(sum[i]);
  });
}

}  // namespace

void max_pool_integers(const CpuPoolCall& call, IntegerType type) {
  switch (type) {
    case IntegerType::kInt8: return max_of_integers<int8_t>(call);
    case IntegerType::kUInt8: return max_of_integers<uint8_t>(call);
    case IntegerType::kInt16: return max_of_integers<int16_t>(call);
    case IntegerType::kInt32: return max_of_integers<int32_t>(call);
    case IntegerType::kInt64: return max_of_integers<int64_t>(call);
  }
}

void max_pool_gather(const CpuPoolCall& call, int64_t bytes) {
  if (bytes == 2) return gather<uint16_t>(call);
  if (bytes == 4) return gather<uint32_t>(call);
  gather<uint64_t>(call);
}

void max_pool_scatter(const CpuPoolCall& call) {
  switch (call.dtype) {
    case DType::kFloat32: return scatter<float, float>(call);
    case DType::kFloat64: return scatter<double, double>(call);
    case DType::kBFloat16: return scatter<torch::headeronly::BFloat16, float>(call);
    case DType::kFloat16: return scatter<torch::headeronly::Half, float>(call);
  }
}

}  // namespace fastconv::cpu
