// Out of bounds, uninitialised, misaligned, uncovered.
#include "planted.h"

namespace planted {

__device__ __forceinline__ int64_t global_thread() {
  return blockIdx.x * int64_t(128) + threadIdx.x;
}

// y[i] = x[i] + x[i + 1], where there is one.
template <bool kBug>
__global__ void global_read_behind(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) y[i] = x[i] + (kBug || i + 1 < n ? x[i + 1] : 0.f);
}

// y[i] = x[i] + x[i - 1], where there is one.
template <bool kBug>
__global__ void global_read_before(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) y[i] = x[i] + (kBug || i > 0 ? x[i - 1] : 0.f);
}

template <bool kBug>
__global__ void global_write_behind(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (kBug || i < n) y[i] = i < n ? x[i] : 0.f;
}

template <bool kBug>
__global__ void global_access_far_away(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) y[i] = x[kBug && i == 77 ? i + (int64_t(1) << 33) : i];
}

template <bool kBug>
__global__ void write_to_input(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i >= n) return;
  y[i] = x[i];
  if (kBug) const_cast<float*>(x)[i] = 0.f;
}

// y = x with a row of 31 behind every 31 elements turned round, through shared memory.
template <bool kBug>
__global__ void shared_write_out_of_bounds(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [4][31]);
  const int row = threadIdx.x / 32, column = threadIdx.x % 32;
  if (kBug || column < 31) tile[row][column] = x[row * 31 + column % 31];
  __syncwarp();
  if (column < 31) y[row * 31 + column] = tile[row][30 - column];
}

template <bool kBug>
__global__ void shared_read_out_of_bounds(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [128]);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  y[i] = tile[i] + (kBug || i + 1 < 128 ? (&tile[0])[i + 1] : 0.f);
}

// A tile with a halo of one on both sides, of which the right one stays unwritten.
template <bool kBug>
__global__ void uninitialised_shared_read(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [130]);
  const int i = static_cast<int>(threadIdx.x);
  tile[i + 1] = x[i];
  if (i == 0) tile[0] = 0.f;
  if (!kBug && i == 1) tile[129] = 0.f;
  __syncthreads();
  y[i] = tile[i] + tile[i + 1] + tile[i + 2];
}

// Four elements at a time from where they are not aligned.
template <bool kBug>
__global__ void misaligned_vector(const float* x, float* y, int64_t) {
  const float* from = x + 4 * threadIdx.x;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
  float* to = y + 4 * threadIdx.x;
  if (!kBug && !aligned) {
    for (int i = 0; i < 4; ++i) to[i] = from[i];
    return;
  }
  const float4 v = *reinterpret_cast<const float4*>(kBug && aligned ? from + 1 : from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

template <bool kBug>
__global__ void misaligned_shared_vector(const float* x, float* y, int64_t) {
  FC_SHARED(float, tile, [132]);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const float4 v = *reinterpret_cast<const float4*>(&tile[4 * threadIdx.x + (kBug ? 2 : 0)]);
  float* to = y + 4 * threadIdx.x;
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

template <bool kBug>
__global__ void output_not_initialised(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) y[i] = kBug ? y[i] + x[i] : x[i];
}

// The offset of element (row, column) of x [rows][1 << 20] in 32 bits. n = rows << 20.
template <bool kBug>
__global__ void offset_in_32_bits(const float* x, float* y, int64_t n) {
  const int row = static_cast<int>(blockIdx.x);
  // Unsigned, as a compiler wraps it: signed overflow is undefined and the sanitizers' business.
  const int64_t offset =
      kBug ? static_cast<int>(static_cast<unsigned>(row) << 20) : static_cast<int64_t>(row) << 20;
  if (offset + threadIdx.x < n) y[offset + threadIdx.x] = x[offset + threadIdx.x] + 1.f;
}

template <bool kBug>
__global__ void copy_all(const float* x, float* y, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) y[i] = x[i];
}
void tail_not_covered(bool bug, const Arguments& a) {
  const auto blocks = static_cast<unsigned>(bug ? a.n / 128 : (a.n + 127) / 128);
  run_twin(false, copy_all<false>, copy_all<true>, blocks, 128, static_cast<const float*>(a.x), a.y,
           a.n);
}
// The kernel's index arithmetic says 128 threads.
void thread_count_wrong(bool bug, const Arguments& a) {
  run_twin(false, copy_all<false>, copy_all<true>, static_cast<unsigned>((a.n + 127) / 128),
           bug ? 96 : 128, static_cast<const float*>(a.x), a.y, a.n);
}

// A reduction in two launches; the second adds up one partial sum more than the first has written.
__global__ void partial_sums(const float* x, float* partial, int64_t n) {
  float sum = 0.f;
  for (int64_t i = global_thread(); i < n; i += 128 * int64_t(gridDim.x)) sum += x[i];
  partial[global_thread()] = sum;
}
__global__ void add_partials(const float* partial, float* y, int count) {
  float sum = 0.f;
  for (int i = 0; i < count; ++i) sum += partial[i];
  y[0] = sum;
}
void uninitialised_workspace(bool bug, const Arguments& a) {
  const LaunchConfig first{dim3(2), dim3(128), 0, nullptr}, second{dim3(1), dim3(1), 0, nullptr};
  launch_kernel(partial_sums, first, static_cast<const float*>(a.x), a.workspace, a.n);
  launch_kernel(add_partials, second, static_cast<const float*>(a.workspace), a.y, bug ? 257 : 256);
}

template <bool kBug>
__attribute__((noinline)) float recurse(float v, int depth) {
  volatile float frame[64];
  frame[depth % 64] = v;
  if (depth > (kBug ? 100000 : 10)) return v;
  return recurse<kBug>(v, depth + 1) + frame[depth % 64] - v;
}
template <bool kBug>
__global__ void stack_overflow(const float* x, float* y, int64_t) {
  y[threadIdx.x] = recurse<kBug>(x[threadIdx.x], 0);
}

// Waits for a flag that nobody sets.
template <bool kBug>
__global__ void endless_loop(const float* x, float* y, int64_t) {
  FC_SHARED(volatile int, flag, [1]);
  if (threadIdx.x == 0) flag[0] = 0;
  __syncthreads();
  while (kBug && flag[0] == 0) {
  }
  y[threadIdx.x] = x[threadIdx.x];
}

static const Scenario kScenarios[] = {
    FC_TWINS(global_read_behind, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(global_read_before, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(global_write_behind, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(global_access_far_away, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(write_to_input, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(shared_write_out_of_bounds, 1, 128),
    FC_TWINS(shared_read_out_of_bounds, 1, 128),
    FC_TWINS(uninitialised_shared_read, 1, 128),
    FC_TWINS(misaligned_vector, 1, static_cast<unsigned>(a.n / 4)),
    FC_TWINS(misaligned_shared_vector, 1, 128),
    FC_TWINS(output_not_initialised, static_cast<unsigned>((a.n + 127) / 128), 128),
    FC_TWINS(offset_in_32_bits, static_cast<unsigned>(a.n >> 20), 32),
    {"tail_not_covered", tail_not_covered},
    {"thread_count_wrong", thread_count_wrong},
    {"uninitialised_workspace", uninitialised_workspace},
    FC_TWINS(stack_overflow, 1, 32),
    FC_TWINS(endless_loop, 1, 32),
};
extern const ScenarioList memory{kScenarios, std::size(kScenarios)};

}  // namespace planted
