// wgmma: descriptors, layouts, accumulators, operands in registers.
#include <cstring>

#include "detail/tma.cuh"
#include "detail/wgmma.cuh"
#include "device.h"

namespace assumptions::warpgroups {
using namespace fastconv::cuda;

namespace {

// d [64, N] = a [64, K] * b [N, K]^T with K of 128 bytes: four products. Operands come as they lie
// in shared memory, that of registers as [128][4][4] fragments. d [128][N / 2] begins as NaN.
template <class T, int N, bool A_MN, bool B_MN, bool REGISTERS>
__global__ void __launch_bounds__(128, 1)
    warpgroup_product_kernel(const uint32_t* a, const uint32_t* b, float* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  constexpr int A_BYTES = 64 * 128, UNIT = 64 * 128;
  unsigned char* const shared =
      dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
  if (!REGISTERS)
    for (int i = threadIdx.x; i < A_BYTES / 4; i += 128) words[i] = a[i];
  for (int i = threadIdx.x; i < N * 32; i += 128) words[A_BYTES / 4 + i] = b[i];
  fence_proxy_async();
  __syncthreads();
  const uint64_t at = wgmma_operand(shared, A_MN ? UNIT : 16);
  const uint64_t bt = wgmma_operand(shared + A_BYTES, B_MN ? UNIT : 16);
  uint32_t fragments[4][4];
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = __uint_as_float(0x7FC00000u);
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) fragments[k][i] = REGISTERS ? a[(threadIdx.x * 4 + k) * 4 + i] : 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma_pin(fragments[k]);
  wgmma_pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    // 32 bytes along K; of MN-major operands 16 rows.
    const uint64_t b_at = wgmma_moved(bt, k * (B_MN ? 2048 : 32));
    if constexpr (REGISTERS)
      wgmma_with_registers<T, N, B_MN>(d, fragments[k], b_at, k != 0);
    else
      wgmma<T, N, A_MN, B_MN>(d, wgmma_moved(at, k * (A_MN ? 2048 : 32)), b_at, k != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(d);
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma_pin(fragments[k]);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[threadIdx.x * (N / 2) + i] = d[i];
#endif
}

// An operand [rows, K] as bits of its elements.
struct Matrix {
  int rows, depth;
  Words bits;
  uint32_t at(int row, int k) const { return bits[row * depth + k]; }
};

Words image(const Matrix& m, bool mn_major) {
  const int size = 128 / m.depth;
  Words words(m.rows * 32, 0);
  auto* const bytes = reinterpret_cast<unsigned char*>(words.data());
  for (int row = 0; row < m.rows; ++row)
    for (int k = 0; k < m.depth; ++k) {
      const size_t place =
          mn_major ? row / 64 * 8192 + k * 128 + row % 64 * size : row * 128 + k * size;
      const uint32_t bits = m.at(row, k);
      std::memcpy(bytes + swizzled_place(place / 16 * 16) + place % 16, &bits, size);
    }
  return words;
}

Words fragments_of(const Matrix& m) {
  const int size = 128 / m.depth, step = m.depth / 4, each = 4 / size;
  Words words;
  for (int thread = 0; thread < 128; ++thread)
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < 4; ++i) {
        const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
        const int first = k * step + (thread % 4 + i / 2 * 4) * each;
        uint32_t word = m.at(row, first);
        if (each == 2) word |= m.at(row, first + 1) << 16;
        words.push_back(word);
      }
  return words;
}

template <class T, int N, bool A_MN, bool B_MN, bool REGISTERS>
Words multiply(const Matrix& a, const Matrix& b) {
  const Memory ma(REGISTERS ? fragments_of(a) : image(a, A_MN)), mb(image(b, B_MN));
  const Memory out(size_t(128) * (N / 2) * 4);
  const LaunchConfig config{dim3(1), dim3(128), 1024 + 8192 + N * 128, nullptr};
  finish([&] {
    return launch_kernel(warpgroup_product_kernel<T, N, A_MN, B_MN, REGISTERS>, config,
                         ma.as<const uint32_t>(), mb.as<const uint32_t>(), out.as<float>());
  });
  return out.words();
}

// f(row, column) of every accumulator, in the order of the kernel's output.
template <class F>
Words accumulators(int n, const F& f) {
  std::vector<float> d;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < n / 2; ++i)
      d.push_back(f(thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8,
                    i / 4 * 8 + thread % 4 * 2 + i % 2));
  return words_of(d);
}

template <class T, int N, bool A_MN, bool B_MN, bool REGISTERS>
Outcome layouts() {
  constexpr int K = 128 / static_cast<int>(sizeof(T)), STEP = K / 4;
  std::vector<float> va(64 * K), vb(N * K);
  for (unsigned i = 0; i < va.size(); ++i) va[i] = whole(i);
  for (unsigned i = 0; i < vb.size(); ++i) vb[i] = whole(i + 100000);
  const auto bits = [](const std::vector<float>& values) {
    Words words;
    for (const float v : values)
      words.push_back(sizeof(T) == 4              ? bits_of(v)
                      : std::is_same_v<T, __half> ? half_of(v)
                                                  : bf16_of(v));
    return words;
  };
  const Words got = multiply<T, N, A_MN, B_MN, REGISTERS>({64, K, bits(va)}, {N, K, bits(vb)});
  const auto sum = [&](int m, int n, bool moves) {
    float d = 0;
    for (int k = 0; k < K; ++k) {
      const int kb = moves ? k : k % STEP, ka = moves || REGISTERS ? k : k % STEP;
      d += va[m * K + ka] * vb[n * K + kb];
    }
    return d;
  };
  std::vector<Reading> readings{
      {"as wgmma.cuh has them", accumulators(N, [&](int m, int n) { return sum(m, n, true); })},
      {"a start that does not move along K",
       accumulators(N, [&](int m, int n) { return sum(m, n, false); })},
      {"rows 8 apart exchanged",
       accumulators(N, [&](int m, int n) { return sum(m ^ 8, n, true); })},
      {"nothing of what d held is dropped", Words(64 * N, 0x7FFFFFFFu)}};
  if (B_MN && N > 64)
    readings.push_back(
        {"no leading offset", accumulators(N, [&](int m, int n) { return sum(m, n % 64, true); })});
  return judge(got, readings);
}

// Numbers with all low bits set by the unit matrix, then the unit matrix by them.
Outcome low_bits() {
  constexpr int N = 64, K = 32;
  const uint32_t value = bits_of(1.f) | 0x2000u | 0x1FFFu;
  Matrix full{64, K, Words(64 * K, value)}, unit{64, K, Words(64 * K, 0)};
  for (int i = 0; i < K; ++i) unit.bits[i * K + i] = bits_of(1.f);
  Words got = multiply<float, N, false, false, false>(full, unit);
  const Words second = multiply<float, N, false, false, false>(unit, full);
  const Words third = multiply<float, N, false, false, true>(full, unit);
  got.insert(got.end(), second.begin(), second.end());
  got.insert(got.end(), third.begin(), third.end());
  const auto with = [&](uint32_t bits) {
    const float v = float_of(bits);
    Words words = accumulators(N, [&](int, int n) { return n < K ? v : 0.f; });
    const Words of_b = accumulators(N, [&](int m, int) { return m < K ? v : 0.f; }), of_a = words;
    words.insert(words.end(), of_b.begin(), of_b.end());
    words.insert(words.end(), of_a.begin(), of_a.end());
    return words;
  };
  return judge(got, {{"cut off", with(value & ~0x1FFFu)},
                     {"rounded", with((value + 0x1000u) & ~0x1FFFu)},
                     {"kept", with(value)}});
}

}  // namespace

std::vector<Check> checks() {
  const char* const who = "every kernel with wgmma";
  return {
      {"wgmma_bf16_k_major", "descriptors, 32 bytes a step, accumulators: K-major, N = 256, bf16",
       who, 90, layouts<__nv_bfloat16, 256, false, false, false>},
      {"wgmma_f16_k_major", "the same of fp16, N = 128", who, 90,
       layouts<__half, 128, false, false, false>},
      {"wgmma_tf32_k_major", "the same of TF32, N = 128", "TF32 of tma", 90,
       layouts<float, 128, false, false, false>},
      {"wgmma_mn_major", "MN-major operands: 1024 bytes for eight of K, the leading offset for 64",
       "wgrad of tma", 90, layouts<__nv_bfloat16, 256, true, true, false>},
      {"wgmma_b_mn_major", "b alone MN-major", "dgrad of tma", 90,
       layouts<__nv_bfloat16, 128, false, true, false>},
      {"wgmma_registers", "a in registers, as ldmatrix gives it", "halo", 90,
       layouts<__nv_bfloat16, 64, false, false, true>},
      {"wgmma_registers_mn_major", "a in registers with b MN-major", "dgrad of halo", 90,
       layouts<__half, 128, false, true, true>},
      {"wgmma_registers_tf32", "a of TF32 in registers", "fp32 in three products", 90,
       layouts<float, 128, false, false, true>},
      {"wgmma_tf32_low_bits", "wgmma does not look at the low 13 bits of TF32 operands",
       "fp32 in three products", 90, low_bits},
  };
}

}  // namespace assumptions::warpgroups
