// Instructions of a warp that compute capability 8.0 has: ldmatrix, mma.sync, cp.async, cvt.rna.
#include "detail/async_copy.cuh"
#include "detail/mbarrier.cuh"
#include "detail/mma.cuh"
#include "detail/stmatrix.cuh"
#include "device.h"

namespace assumptions::instructions {
using namespace fastconv::cuda;

namespace {

// out [32][4] words: a 16 x 16 matrix of 16 bits, whose rows lie in the 128B swizzle.
template <bool TRANS>
__global__ void __launch_bounds__(32, 1) matrix_load_kernel(const uint32_t* image, uint32_t* out) {
  FC_DYN_SHARED(unsigned char, rows);
  for (int i = threadIdx.x; i < 16 * 32; i += 32) reinterpret_cast<uint32_t*>(rows)[i] = image[i];
  __syncthreads();
  const int row = threadIdx.x % 16, chunk = threadIdx.x / 16;
  uint32_t r[4];
  const unsigned char* const from = rows + row * 128 + (chunk ^ row % 8) * 16;
  if (TRANS)
    ldmatrix_x4_trans(r, from);
  else
    ldmatrix_x4(r, from);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

Outcome matrix_load(bool trans) {
  std::vector<uint16_t> matrix(16 * 16);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<uint16_t>(i + 1);
  Words image(16 * 32, 0);
  for (int row = 0; row < 16; ++row)
    for (int i = 0; i < 8; ++i)
      image[swizzled_place(row * 128 + i * 4) / 4] =
          matrix[row * 16 + 2 * i] | uint32_t(matrix[row * 16 + 2 * i + 1]) << 16;
  const Memory in(image), out(32 * 4 * 4);
  const LaunchConfig config{dim3(1), dim3(32), 2048, nullptr};
  finish([&] {
    return launch_kernel(trans ? matrix_load_kernel<true> : matrix_load_kernel<false>, config,
                         in.as<const uint32_t>(), out.as<uint32_t>());
  });
  const auto read = [&](bool turned) {
    Words words;
    for (int lane = 0; lane < 32; ++lane)
      for (int m = 0; m < 4; ++m) {
        const int top = m % 2 * 8, left = m / 2 * 8, g = lane / 4, t = lane % 4 * 2;
        const auto at = [&](int i, int j) -> uint32_t { return matrix[(top + i) * 16 + left + j]; };
        words.push_back(turned ? at(t, g) | at(t + 1, g) << 16 : at(g, t) | at(g, t + 1) << 16);
      }
    return words;
  };
  return judge(out.words(), {{trans ? "the transpose" : "rows", read(trans)},
                             {trans ? "rows" : "the transpose", read(!trans)}});
}

// out [16][32] words: rows of 128 bytes, of which stmatrix fills [16][16] of 16 bits.
__global__ void __launch_bounds__(32, 1) matrix_store_kernel(uint32_t* out) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, rows);
  uint32_t* const words = reinterpret_cast<uint32_t*>(rows);
  for (int i = threadIdx.x; i < 16 * 32; i += 32) words[i] = 0;
  __syncthreads();
  const int row = threadIdx.x % 16, chunk = threadIdx.x / 16;
  uint32_t r[4];
  for (int m = 0; m < 4; ++m) {
    // Element [i][j] of matrix m is 1 + 64 m + 8 i + j.
    const uint32_t first = 1 + 64 * m + 8 * (threadIdx.x / 4) + 2 * (threadIdx.x % 4);
    r[m] = first | (first + 1) << 16;
  }
  stmatrix_x4(rows + row * 128 + (chunk ^ row % 8) * 16, r);
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * 32; i += 32) out[i] = words[i];
#endif
}

Outcome matrix_store() {
  const Memory out(16 * 128);
  finish([&] {
    return launch_kernel(matrix_store_kernel, LaunchConfig{dim3(1), dim3(32), 2048, nullptr},
                         out.as<uint32_t>());
  });
  const auto stored = [&](bool turned) {
    Words words(16 * 32, 0);
    for (int row = 0; row < 16; ++row)
      for (int i = 0; i < 8; ++i) {
        const int matrix = row / 8 + i / 4 * 2, r = row % 8, c = i % 4 * 2;
        const auto at = [&](int a, int b) -> uint32_t { return 1 + 64 * matrix + 8 * a + b; };
        words[swizzled_place(row * 128 + i * 4) / 4] =
            turned ? at(c, r) | at(c + 1, r) << 16 : at(r, c) | at(r, c + 1) << 16;
      }
    return words;
  };
  return judge(out.words(), {{"rows", stored(false)}, {"columns", stored(true)}});
}

enum class Kind { kHalf, kBfloat16, kTf32 };

// One mma.sync: fragments a [32][4], b [32][2] to d [32][4], which starts as zero.
template <Kind KIND>
__global__ void __launch_bounds__(32, 1)
    product_kernel(const uint32_t* a, const uint32_t* b, uint32_t* d) {
  uint32_t ra[4], rb[2];
  float rd[4] = {};
  for (int i = 0; i < 4; ++i) ra[i] = a[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[threadIdx.x * 2 + i];
  if constexpr (KIND == Kind::kHalf)
    mma_m16n8k16<__half>(rd, ra, rb);
  else if constexpr (KIND == Kind::kBfloat16)
    mma_m16n8k16<__nv_bfloat16>(rd, ra, rb);
  else
    mma_m16n8k8_tf32(rd, ra, rb);
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = __float_as_uint(rd[i]);
}

Outcome product(Kind kind) {
  const int depth = kind == Kind::kTf32 ? 8 : 16;
  std::vector<float> a(16 * depth), b(depth * 8);  // [16][depth], [depth][8]
  for (unsigned i = 0; i < a.size(); ++i) a[i] = whole(i);
  for (unsigned i = 0; i < b.size(); ++i) b[i] = whole(i + 1000);
  const auto pack = [&](float low, float high) {
    return kind == Kind::kHalf ? half_of(low) | uint32_t(half_of(high)) << 16
                               : bf16_of(low) | uint32_t(bf16_of(high)) << 16;
  };
  Words fa, fb;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8;
      const int k = kind == Kind::kTf32 ? t + i / 2 * 4 : 2 * t + i / 2 * 8;
      fa.push_back(kind == Kind::kTf32 ? bits_of(a[row * depth + k])
                                       : pack(a[row * depth + k], a[row * depth + k + 1]));
    }
    for (int i = 0; i < 2; ++i) {
      const int k = kind == Kind::kTf32 ? t + i * 4 : 2 * t + i * 8;
      fb.push_back(kind == Kind::kTf32 ? bits_of(b[k * 8 + g])
                                       : pack(b[k * 8 + g], b[(k + 1) * 8 + g]));
    }
  }
  const Memory ma(fa), mb(fb), md(32 * 4 * 4);
  const LaunchConfig config{dim3(1), dim3(32), 0, nullptr};
  const auto kernel = kind == Kind::kHalf       ? product_kernel<Kind::kHalf>
                      : kind == Kind::kBfloat16 ? product_kernel<Kind::kBfloat16>
                                                : product_kernel<Kind::kTf32>;
  finish([&] {
    return launch_kernel(kernel, config, ma.as<const uint32_t>(), mb.as<const uint32_t>(),
                         md.as<uint32_t>());
  });
  const auto result = [&](bool halves_exchanged) {
    std::vector<float> d;
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (halves_exchanged ? i % 2 : i / 2) * 8;
        const int column = lane % 4 * 2 + (halves_exchanged ? i / 2 : i % 2);
        float sum = 0;
        for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[k * 8 + column];
        d.push_back(sum);
      }
    return words_of(d);
  };
  return judge(md.words(), {{"fragments as mma.cuh has them", result(false)},
                            {"rows and columns of d exchanged", result(true)}});
}

Outcome low_bits() {
  // 16 x 8 of one value with all low bits set, times the unit matrix.
  const uint32_t value = bits_of(1.f) | 0x2000u | 0x1FFFu;
  const Words a(32 * 4, value);
  Words b;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 2; ++i) b.push_back(lane % 4 + i * 4 == lane / 4 ? bits_of(1.f) : 0u);
  const Memory ma(a), mb(b), md(32 * 4 * 4);
  finish([&] {
    return launch_kernel(product_kernel<Kind::kTf32>, LaunchConfig{dim3(1), dim3(32), 0, nullptr},
                         ma.as<const uint32_t>(), mb.as<const uint32_t>(), md.as<uint32_t>());
  });
  return judge(md.words(), {{"cut off", Words(32 * 4, value & ~0x1FFFu)},
                            {"rounded", Words(32 * 4, (value + 0x1000u) & ~0x1FFFu)},
                            {"kept", a}});
}

__global__ void __launch_bounds__(64, 1) round_kernel(const float* values, uint32_t* out) {
  out[threadIdx.x] = to_tf32(values[threadIdx.x]);
}

Outcome conversion() {
  std::vector<float> values;
  for (uint32_t i = 0; i < 60; ++i)
    values.push_back(float_of((i % 3 == 0 ? 0x80000000u : 0u) | (100u + i) << 23 |
                              (i * 77 % 1024) << 13 | (i % 3 == 1 ? i * 137 : 0x1000u)));
  values.push_back(float_of(0x7F7FFFFFu));
  values.push_back(float_of(0x00001000u));  // subnormal
  values.push_back(float_of(0x7F800000u));
  values.push_back(0.f);
  const Memory in(values), out(64 * 4);
  finish([&] {
    return launch_kernel(round_kernel, LaunchConfig{dim3(1), dim3(64), 0, nullptr},
                         in.as<const float>(), out.as<uint32_t>());
  });
  const auto each = [&](auto round) {
    Words words;
    for (const float v : values) words.push_back(round(bits_of(v)));
    return words;
  };
  return judge(
      out.words(),
      {{"to nearest, ties away", each([](uint32_t v) { return (v + 0x1000u) & ~0x1FFFu; })},
       {"to nearest, ties to even",
        each([](uint32_t v) { return (v + 0xFFFu + (v >> 13 & 1)) & ~0x1FFFu; })},
       {"toward zero", each([](uint32_t v) { return v & ~0x1FFFu; })}});
}

// Every second copy is not valid, and its source no address.
__global__ void __launch_bounds__(32, 1) async_copy_kernel(const uint32_t* from, uint32_t* out) {
  FC_DYN_SHARED(uint32_t, words);
  for (int i = 0; i < 4; ++i) words[threadIdx.x * 4 + i] = 0x7FED7FEDu;
  __syncthreads();
  const bool valid = threadIdx.x % 2 == 0;
  cp_async<16>(words + threadIdx.x * 4, valid ? from + threadIdx.x * 4 : nullptr, valid);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = words[threadIdx.x * 4 + i];
}

Outcome async_copy() {
  Words from(128);
  for (uint32_t i = 0; i < 128; ++i) from[i] = i + 1;
  const Memory in(from), out(512);
  finish([&] {
    return launch_kernel(async_copy_kernel, LaunchConfig{dim3(1), dim3(32), 512, nullptr},
                         in.as<const uint32_t>(), out.as<uint32_t>());
  });
  const auto with = [&](uint32_t fill) {
    Words words = from;
    for (uint32_t i = 0; i < 128; ++i)
      if (i / 4 % 2 != 0) words[i] = fill;
    return words;
  };
  return judge(out.words(), {{"zeros, and no read", with(0)}, {"untouched", with(0x7FED7FEDu)}});
}

}  // namespace

std::vector<Check> checks() {
  const char* const gemm = "im2col, Winograd, everything with mma.sync";
  return {
      {"ldmatrix", "ldmatrix takes rows from anywhere: here from the 128B swizzle", "halo, gemm",
       80, [] { return matrix_load(false); }},
      {"ldmatrix_trans", "its transposed form gives columns", "gemm", 80,
       [] { return matrix_load(true); }},
      {"stmatrix", "stmatrix is the way back of ldmatrix, to rows in the 128B swizzle too",
       "results that TMA stores", 90, matrix_store},
      {"mma_f16", "fragments of mma.m16n8k16, fp16", gemm, 80, [] { return product(Kind::kHalf); }},
      {"mma_bf16", "fragments of mma.m16n8k16, bf16", gemm, 80,
       [] { return product(Kind::kBfloat16); }},
      {"mma_tf32", "fragments of mma.m16n8k8, TF32", gemm, 80, [] { return product(Kind::kTf32); }},
      {"mma_tf32_low_bits", "mma.sync does not look at the low 13 bits of TF32 operands",
       "fp32 operands that are handed on unrounded", 80, low_bits},
      {"cvt_tf32", "cvt.rna.tf32 rounds to nearest, ties away from zero", "TF32 and its split", 80,
       conversion},
      {"cp_async_zero_fill", "cp.async of no bytes writes zeros and does not read", gemm, 80,
       async_copy},
  };
}

}  // namespace assumptions::instructions
