// Not bugs: what single instructions compute, written out for tests/test_emulator_values.py.
#include "planted.h"

namespace planted {
using namespace fastconv::cuda;

constexpr unsigned kFull = 0xFFFFFFFFu;

// x [64] and the width; y [4][64].
__global__ void shuffles(const float* x, float* y) {
  const int i = static_cast<int>(threadIdx.x), width = static_cast<int>(x[64]);
  const float mine = x[i];
  y[i] = __shfl_sync(kFull, mine, 3, width);
  y[64 + i] = __shfl_xor_sync(kFull, mine, 5, width);
  y[128 + i] = static_cast<float>(__shfl_down_sync(kFull, static_cast<double>(mine), 3, width));
  y[192 + i] = static_cast<float>(__shfl_up_sync(kFull, static_cast<int>(mine), 2, width));
}

// x [64], y [8][64].
__global__ void votes(const float* x, float* y) {
  const int i = static_cast<int>(threadIdx.x);
  const int mine = x[i] != 0.f;
  const unsigned ballot = __ballot_sync(kFull, mine);
  y[i] = static_cast<float>(ballot & 0xFFFFu);
  y[64 + i] = static_cast<float>(ballot >> 16);
  y[128 + i] = static_cast<float>(__any_sync(kFull, mine));
  y[192 + i] = static_cast<float>(__all_sync(kFull, mine));
  y[256 + i] = static_cast<float>(__syncthreads_count(mine));
  y[320 + i] = static_cast<float>(__syncthreads_or(mine));
  y[384 + i] = static_cast<float>(__syncthreads_and(mine));
  y[448 + i] = i % 32 < 16 ? -1.f : static_cast<float>(__any_sync(0xFFFF0000u, mine));
}

// x [256] a permutation of 0..255; 4 blocks of 64. counters: sum, max, min, or, tickets taken.
__global__ void atomics(const float* x, int* counters, float* y) {
  const int i = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  const int mine = static_cast<int>(x[i]);
  atomicAdd(counters, mine);
  atomicMax(counters + 1, mine);
  atomicMin(counters + 2, -mine);
  atomicOr(counters + 3, mine);
  int ticket = 0, seen;
  while ((seen = atomicCAS(counters + 4, ticket, ticket + 1)) != ticket) ticket = seen;
  y[5 + i] = static_cast<float>(ticket);
}
__global__ void clear(int* counters) { counters[threadIdx.x] = 0; }
__global__ void read_counters(const int* counters, float* y) {
  y[threadIdx.x] = static_cast<float>(counters[threadIdx.x]);
}

__device__ float2 halves(uint32_t v) {
  return {__half2float(__ushort_as_half(static_cast<uint16_t>(v))),
          __half2float(__ushort_as_half(static_cast<uint16_t>(v >> 16)))};
}

// x [4][8][8]; y [plain, transposed][4][32 lanes][2].
__global__ void ldmatrix(const float* x, float* y) {
  FC_SHARED(__half, tile, [32][8]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int j = 0; j < 8; ++j) tile[lane][j] = __float2half_rn(x[lane * 8 + j]);
  __syncwarp();
  uint32_t r[4];
  for (int form = 0; form < 2; ++form) {
    if (form == 0)
      ldmatrix_x4(r, &tile[lane][0]);
    else
      ldmatrix_x4_trans(r, &tile[lane][0]);
    for (int m = 0; m < 4; ++m) {
      float* const to = y + ((form * 4 + m) * 32 + lane) * 2;
      const float2 pair = halves(r[m]);
      to[0] = pair.x, to[1] = pair.y;
    }
    // The two-matrix form is the first half of the other.
    uint32_t two[2];
    if (form == 0)
      ldmatrix_x2(two, &tile[lane % 16][0]);
    else
      ldmatrix_x2_trans(two, &tile[lane % 16][0]);
    if (two[0] != r[0] || two[1] != r[1]) y[0] = __int_as_float(0x7FC00000);
  }
}

// x: fragments of a, b and c, element by element, each [elements][32 lanes]; y: of d.
template <class T>
__global__ void mma_16_bit(const float* x, float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto element = [&](int i) {
    const float v = x[i * 32 + lane];
    if constexpr (std::is_same_v<T, __half>)
      return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(v)));
    else
      return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(v)));
  };
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = element(2 * i) | element(2 * i + 1) << 16;
  for (int i = 0; i < 2; ++i) b[i] = element(8 + 2 * i) | element(8 + 2 * i + 1) << 16;
  for (int i = 0; i < 4; ++i) d[i] = x[(12 + i) * 32 + lane];
  mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) y[i * 32 + lane] = d[i];
}
__global__ void mma_tf32(const float* x, float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4], b[2];
  float d[4];
  // The low bits are not part of the number: set, they must not matter.
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(x[i * 32 + lane]) | 0x1FFFu;
  for (int i = 0; i < 2; ++i) b[i] = to_tf32(x[(4 + i) * 32 + lane]) | 0x1FFFu;
  for (int i = 0; i < 4; ++i) d[i] = x[(6 + i) * 32 + lane];
  mma_m16n8k8_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) y[i * 32 + lane] = d[i];
}

// y[i] = when thread i came.
__global__ void arrival_order(int* counter, float* y) {
  y[threadIdx.x] = static_cast<float>(atomicAdd(counter, 1));
}

template <class... Params, class... Args>
void run(void (*kernel)(Params...), unsigned grid, unsigned block, Args... args) {
  launch_kernel(kernel, LaunchConfig{dim3(grid), dim3(block), 0, nullptr}, args...);
}
const float* input(const Arguments& a) { return a.x; }
int* counters(const Arguments& a) { return reinterpret_cast<int*>(a.workspace); }

static const Scenario kScenarios[] = {
    {"shuffles", [](bool, const Arguments& a) { run(shuffles, 1, 64, input(a), a.y); }},
    {"votes", [](bool, const Arguments& a) { run(votes, 1, 64, input(a), a.y); }},
    {"atomics",
     [](bool, const Arguments& a) {
       run(clear, 1, 5, counters(a));
       run(atomics, 4, 64, input(a), counters(a), a.y);
       run(read_counters, 1, 5, static_cast<const int*>(counters(a)), a.y);
     }},
    {"ldmatrix", [](bool, const Arguments& a) { run(ldmatrix, 1, 32, input(a), a.y); }},
    {"mma_f16", [](bool, const Arguments& a) { run(mma_16_bit<__half>, 1, 32, input(a), a.y); }},
    {"mma_bf16",
     [](bool, const Arguments& a) { run(mma_16_bit<__nv_bfloat16>, 1, 32, input(a), a.y); }},
    {"mma_tf32", [](bool, const Arguments& a) { run(mma_tf32, 1, 32, input(a), a.y); }},
    {"arrival_order",
     [](bool, const Arguments& a) {
       run(clear, 1, 1, counters(a));
       run(arrival_order, 1, 256, counters(a), a.y);
     }},
};
extern const ScenarioList values{kScenarios, std::size(kScenarios)};

}  // namespace planted
