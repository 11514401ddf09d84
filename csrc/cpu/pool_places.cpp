// Pooling by explicit places (pool_places.h).
// Bytes: one element and one index per output, from anywhere in a plane. FLOPs: one per output
// (integers: one compare per tap). Bound by the latency of the cache; NHWC goes over a few channels
// side by side, so that a cache line is used for more than one of them. Deterministic: a strip
// belongs to one thread, in the order of the outputs.
#include "pool_places.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kChannels = 16;

// Element (i, c) of a strip is at in + i * step + c of the input, at out + i * step + c of the
// output, c < width.
struct Strip {
  int64_t in, out, step, width;
  int64_t plane;  // of c = 0
};

template <class F>
void over_strips(const CpuPoolCall& call, const F& f) {
  const PoolProblem& p = call.p;
  const int64_t blocks = call.channels_last ? (p.C + kChannels - 1) / kChannels : p.C;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, block = task % blocks;
      const int64_t c = call.channels_last ? block * kChannels : block;
      const int64_t left = p.C - c, plane = n * p.C + c;
      if (call.channels_last)
        f(Strip{n * p.in_size() * p.C + c, n * p.out_size() * p.C + c, p.C,
                left < kChannels ? left : kChannels, plane});
      else
        f(Strip{plane * p.in_size(), plane * p.out_size(), 1, 1, plane});
    }
  };
  if (p.N * p.C * p.out_size() < 4096)
    range(0, p.N * blocks);
  else
    parallel_for(p.N * blocks, range);
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
  over_strips(call, [&](const Strip& strip) {
    over_outputs(p, [&](int64_t i, int64_t o, int64_t j, int64_t q) {
      const PoolTaps ts = pool_taps(p, 0, o), rs = pool_taps(p, 1, j), ss = pool_taps(p, 2, q);
      for (int64_t c = 0; c < strip.width; ++c) {
        T best = std::numeric_limits<T>::lowest();
        int64_t arg = (ts.first * p.kernel[1] + rs.first) * p.kernel[2] + ss.first;
        for (int64_t t = ts.first; t < ts.last; ++t)
          for (int64_t r = rs.first; r < rs.last; ++r)
            for (int64_t s = ss.first; s < ss.last; ++s) {
              const int64_t tap = (t * p.kernel[1] + r) * p.kernel[2] + s;
              const T v = x[strip.in + place_of_tap(p, o, j, q, tap) * strip.step + c];
              if (v > best) best = v, arg = tap;
            }
        const int64_t at = strip.out + i * strip.step + c;
        y[at] = best;
        if (call.index_kind == PoolIndex::kLong)
          static_cast<int64_t*>(call.index)[at] = place_of_tap(p, o, j, q, arg);
        else if (call.index_kind == PoolIndex::kByte)
          static_cast<uint8_t*>(call.index)[at] = static_cast<uint8_t>(arg);
      }
    });
  });
}

template <class T>
void gather(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.result);
  const int64_t* places = static_cast<const int64_t*>(call.index);
  const uint8_t* taps = static_cast<const uint8_t*>(call.index);
  const bool direct = call.index_kind == PoolIndex::kLong;
  over_strips(call, [&](const Strip& strip) {
    over_outputs(p, [&](int64_t i, int64_t o, int64_t j, int64_t q) {
      const int64_t at = strip.out + i * strip.step;
      for (int64_t c = 0; c < strip.width; ++c) {
        const int64_t place = direct ? places[at + c] : place_of_tap(p, o, j, q, taps[at + c]);
        const bool inside = place >= 0 && place < p.in_size();
        y[at + c] = inside ? x[strip.in + place * strip.step + c] : T(0);
      }
    });
  });
}

template <class T, class A>
void scatter(const CpuPoolCall& call) {
  const PoolProblem& p = call.p;
  const T* dy = static_cast<const T*>(call.dy);
  T* dx = static_cast<T*>(call.result);
  const int64_t* index = static_cast<const int64_t*>(call.index);
  over_strips(call, [&](const Strip& strip) {
    std::vector<A> sum(p.in_size() * strip.width, A(0));
    for (int64_t i = 0; i < p.out_size(); ++i)
      for (int64_t c = 0; c < strip.width; ++c) {
        const int64_t at = strip.out + i * strip.step + c, place = index[at];
        if (place >= 0 && place < p.in_size())
          sum[place * strip.width + c] += static_cast<A>(dy[at]);
      }
    for (int64_t i = 0; i < p.in_size(); ++i)
      for (int64_t c = 0; c < strip.width; ++c)
        dx[strip.in + i * strip.step + c] = static_cast<T>(sum[i * strip.width + c]);
  });
}

// Strips are numbered by their first plane; a wrong place is kept with its place in the contiguous
// tensor, the largest of which is told.
template <class T>
bool unpool(const CpuPoolCall& call, int64_t* wrong) {
  const PoolProblem& p = call.p;
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.result);
  const int64_t* index = static_cast<const int64_t*>(call.index);
  struct Wrong {
    int64_t at, place;
  };
  std::vector<Wrong> found(num_threads(), Wrong{-1, 0});
  over_strips(call, [&](const Strip& strip) {
    for (int64_t i = 0; i < p.in_size(); ++i)
      std::memset(y + strip.in + i * strip.step, 0, strip.width * sizeof(T));
    for (int64_t i = 0; i < p.out_size(); ++i)
      for (int64_t c = 0; c < strip.width; ++c) {
        const int64_t at = strip.out + i * strip.step + c, place = index[at];
        if (place >= 0 && place < p.in_size()) {
          y[strip.in + place * strip.step + c] = x[at];
          continue;
        }
        Wrong& last = found[thread_index()];
        const int64_t number = (strip.plane + c) * p.out_size() + i;
        if (number > last.at) last = {number, place};
      }
  });
  Wrong last{-1, 0};
  for (const Wrong& w : found)
    if (w.at > last.at) last = w;
  *wrong = last.place;
  return last.at < 0;
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

bool max_unpool(const CpuPoolCall& call, int64_t bytes, int64_t* wrong) {
  if (bytes == 2) return unpool<uint16_t>(call, wrong);
  if (bytes == 4) return unpool<uint32_t>(call, wrong);
  return unpool<uint64_t>(call, wrong);
}

}  // namespace fastconv::cpu
