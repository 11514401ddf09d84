// Bugs that the sanitizers see: undefined behaviour that computes something all the same.
#include "planted.h"

namespace planted {

// y[i] = the sum of x[i .. i+3], through a local array.
template <bool kBug>
__global__ void local_array_out_of_bounds(const float* x, float* y, int64_t n) {
  float window[4];
  const int i = static_cast<int>(threadIdx.x);
  volatile int taps = 4;  // keeps the array and its index
  for (int t = 0; t < taps + (kBug ? 1 : 0); ++t) window[t] = i + t < n ? x[i + t] : 0.f;
  float sum = 0.f;
  for (int t = 0; t < taps; ++t) sum += window[t];
  y[i] = sum;
}

// The second index of a tile runs into the next row.
template <bool kBug>
__global__ void row_overrun(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [4][33]);
  const int row = static_cast<int>(threadIdx.x) / 32, column = static_cast<int>(threadIdx.x) % 32;
  if (kBug)
    tile[0][row * 33 + column] = x[threadIdx.x];
  else
    tile[row][column] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[row][column];
}

// An int product wraps, to what happens to be right.
template <bool kBug>
__global__ void signed_overflow(const float* x, float* y, int64_t) {
  volatile int rows = 65536;
  const int offset = kBug ? rows * rows : 0;
  y[threadIdx.x] = x[static_cast<int>(threadIdx.x) + offset];
}

// A shift by the width of the type.
template <bool kBug>
__global__ void shift_too_far(const float* x, float* y, int64_t) {
  volatile int bits = kBug ? 32 : 31;
  const unsigned mask = (1u << bits) - 1u;
  y[threadIdx.x] = mask != 1u ? x[threadIdx.x] : x[threadIdx.x] + 0.f;
}

template <bool kBug>
__global__ void shared_overrun(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  FC_DYN_SHARED(float, dynamic);
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  dynamic[i] = x[i];
  __syncthreads();
  const float* const from = i % 2 == 0 ? dynamic : &tile[0];
  y[i] = from[kBug && i == 127 ? 128 : i];
}
void run_shared_overrun(bool bug, const Arguments& a) {
  launch_kernel(bug ? shared_overrun<true> : shared_overrun<false>,
                LaunchConfig{dim3(1), dim3(128), 512, nullptr}, static_cast<const float*>(a.x), a.y,
                a.n);
}

static const Scenario kScenarios[] = {
    FC_TWINS(local_array_out_of_bounds, 1, 128), FC_TWINS(row_overrun, 1, 128),
    FC_TWINS(signed_overflow, 1, 128),           FC_TWINS(shift_too_far, 1, 128),
    {"shared_overrun", run_shared_overrun},
};
extern const ScenarioList undefined{kScenarios, std::size(kScenarios)};

}  // namespace planted
