// How tensor cores end a sum. What they keep of it is not documented; tolerances leave room for a
// unit in the last place of the largest term, toward zero, at every instruction.
#include <cmath>
#include <type_traits>

#include "detail/mma.cuh"
#include "detail/tma.cuh"
#include "detail/wgmma.cuh"
#include "device.h"

namespace assumptions::sums {
using namespace fastconv::cuda;

namespace {

// d = c + `rounds` times the sum of `terms`, each times one.
struct Sum {
  float c;
  float terms[16];
  int rounds;
};

enum class Unit { kMmaBfloat16, kMmaTf32, kWgmmaBfloat16, kWgmmaTf32 };
constexpr bool is_wide(Unit unit) {
  return unit == Unit::kMmaBfloat16 || unit == Unit::kWgmmaBfloat16;
}

template <bool WIDE>
__device__ uint32_t word_of(const float* terms, int i) {
  if constexpr (WIDE)
    return __float_as_uint(terms[2 * i]) >> 16 | (__float_as_uint(terms[2 * i + 1]) & 0xFFFF0000u);
  return __float_as_uint(terms[i]);
}

template <bool WIDE>
__global__ void __launch_bounds__(32, 1) mma_sum_kernel(Sum p, float* out) {
  constexpr uint32_t ONE = WIDE ? 0x3F803F80u : 0x3F800000u;
  const int t = threadIdx.x % 4;
  const uint32_t low = word_of<WIDE>(p.terms, t), high = word_of<WIDE>(p.terms, t + 4);
  const uint32_t a[4] = {low, low, high, high}, b[2] = {ONE, ONE};
  float d[4] = {p.c, p.c, p.c, p.c};
  for (int i = 0; i < p.rounds; ++i) {
    if constexpr (WIDE)
      mma_m16n8k16<__nv_bfloat16>(d, a, b);
    else
      mma_m16n8k8_tf32(d, a, b);
  }
  if (threadIdx.x == 0) *out = d[0];
}

template <bool WIDE>
__global__ void __launch_bounds__(128, 1) wgmma_sum_kernel(Sum p, float* out) {
#if defined(FC_SM90A)
  using T = std::conditional_t<WIDE, __nv_bfloat16, float>;
  constexpr uint32_t ONE = WIDE ? 0x3F803F80u : 0x3F800000u;
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const shared =
      dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
  for (int i = threadIdx.x; i < 64 * 32; i += 128) words[i] = ONE;  // b [64, 128 bytes]
  fence_proxy_async();
  __syncthreads();
  const int t = threadIdx.x % 4;
  const uint32_t low = word_of<WIDE>(p.terms, t), high = word_of<WIDE>(p.terms, t + 4);
  uint32_t a[4] = {low, low, high, high};
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = p.c;
  const uint64_t b = wgmma_operand(shared);
  for (int i = 0; i < p.rounds; ++i) {
    wgmma_pin(a);
    wgmma_pin(d);
    wgmma_fence();
    wgmma_with_registers<T, 64>(d, a, b, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(d);
    wgmma_pin(a);
  }
  if (threadIdx.x == 0) *out = d[0];
#endif
}

float result(Unit unit, const Sum& sum) {
  const Memory out(4);
  const bool wide = is_wide(unit), warp = unit == Unit::kMmaBfloat16 || unit == Unit::kMmaTf32;
  const LaunchConfig config{dim3(1), dim3(warp ? 32 : 128), warp ? size_t(0) : 1024 + 8192,
                            nullptr};
  const auto kernel = warp ? (wide ? mma_sum_kernel<true> : mma_sum_kernel<false>)
                           : (wide ? wgmma_sum_kernel<true> : wgmma_sum_kernel<false>);
  finish([&] { return launch_kernel(kernel, config, sum, out.as<float>()); });
  return float_of(out.words()[0]);
}

// 1 and three quarters of a unit in the last place, and the same below zero.
Outcome ends(Unit unit) {
  const float part = 1.5f * std::ldexp(1.f, -24), up = std::ldexp(1.f, -23);
  const Words got = words_of({result(unit, {1.f, {part}, 1}), result(unit, {-1.f, {-part}, 1})});
  return judge(got, {{"cut off, toward zero", words_of({1.f, -1.f})},
                     {"rounded to nearest", words_of({1.f + up, -1.f - up})},
                     {"rounded down", words_of({1.f, -1.f - up})}});
}

// How far below the last place of the largest term the others still count: terms of 2^-(23 + bits)
// that together make up a unit in the last place of 1.
Outcome kept(Unit unit) {
  const int depth = is_wide(unit) ? 16 : 8;
  int bits = 0;
  for (int i = 1; 1 << i <= depth; ++i) {
    Sum sum{1.f, {}, 1};
    for (int k = 0; k < 1 << i; ++k) sum.terms[k] = std::ldexp(1.f, -23 - i);
    if (result(unit, sum) == 1.f) break;
    bits = i;
  }
  return between(bits, 1, is_wide(unit) ? 4 : 3, " bits below the last place count");
}

// Many sums that leave three quarters of a unit in the last place each time.
Outcome drift(Unit unit) {
  constexpr int kRounds = 256;
  constexpr float kStart = 1 << 18, kUnit = 1.f / 32;
  Sum sum{kStart, {}, kRounds};
  double all = kStart;
  for (int k = 0; k < (is_wide(unit) ? 16 : 8); ++k) {
    sum.terms[k] = 1.f + static_cast<float>(k == 0 ? 3 : k % 8) / 128;
    all += kRounds * double(sum.terms[k]);
  }
  return between((all - result(unit, sum)) / (kRounds * kUnit), 0.5, 2,
                 " units in the last place lost by an instruction");
}

}  // namespace

std::vector<Check> checks() {
  const char* const who = "tolerances, and the emulation's sums";
  const auto about = [&](Unit unit, const char* end, const char* bits, const char* loss) {
    return std::vector<Check>{
        {end, "a sum is cut off toward zero, not rounded", who, 80, [unit] { return ends(unit); }},
        {bits, "terms keep a bit at least below the last place of the largest", who, 80,
         [unit] { return kept(unit); }},
        {loss, "a sum that goes on loses less than two units at every instruction", who, 80,
         [unit] { return drift(unit); }}};
  };
  std::vector<Check> all;
  for (auto& part :
       {about(Unit::kMmaBfloat16, "mma_bf16_end", "mma_bf16_bits", "mma_bf16_drift"),
        about(Unit::kMmaTf32, "mma_tf32_end", "mma_tf32_bits", "mma_tf32_drift"),
        about(Unit::kWgmmaBfloat16, "wgmma_bf16_end", "wgmma_bf16_bits", "wgmma_bf16_drift"),
        about(Unit::kWgmmaTf32, "wgmma_tf32_end", "wgmma_tf32_bits", "wgmma_tf32_drift")})
    for (Check check : part) {
      if (check.name[0] == 'w') check.capability = 90;
      all.push_back(check);
    }
  return all;
}

}  // namespace assumptions::sums
