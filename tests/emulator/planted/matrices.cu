// ldmatrix and mma.sync mistakes. x holds a [16][16] and b [16][8] (gemm_k x gemm_n), small
// integers; y [16][8] = a b.
#include "planted.h"

namespace planted {
using namespace fastconv::cuda;

enum class Bug { kNone, kFragmentIndex, kRow, kMisaligned, kNotTransposed, kHalfTheWarp };

template <Bug kBug>
__global__ void product(const float* x, float* y, int64_t) {
  // Rows of 48 bytes: aligned to 16, as ldmatrix asks for, and free of bank conflicts.
  FC_SHARED(__half, a, [16][24]);
  FC_SHARED(__half, b, [16][24]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) a[i / 16][i % 16] = __float2half_rn(x[i]);
  for (int i = lane; i < 128; i += 32) b[i / 8][i % 8] = __float2half_rn(x[256 + i]);
  __syncwarp();
  uint32_t af[4], bf[2];
  const int row = kBug == Bug::kRow ? lane / 2 : lane % 16;
  ldmatrix_x4(af, &a[row][lane / 16 * 8 + (kBug == Bug::kMisaligned ? 4 : 0)]);
  if (kBug == Bug::kNotTransposed)
    ldmatrix_x2(bf, &b[lane % 16][0]);
  else
    ldmatrix_x2_trans(bf, &b[lane % 16][0]);
  if (kBug == Bug::kFragmentIndex) {
    const uint32_t keep = af[1];
    af[1] = af[2];
    af[2] = keep;
  }
  float d[4] = {};
  if (kBug != Bug::kHalfTheWarp || lane < 16) mma_m16n8k16<__half>(d, af, bf);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) y[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

template <Bug kBug>
void run_product(bool bug, const Arguments& a) {
  run_twin(bug, product<Bug::kNone>, product<kBug>, 1, 32, static_cast<const float*>(a.x), a.y,
           a.n);
}

static const Scenario kScenarios[] = {
    {"wrong_fragment_index", run_product<Bug::kFragmentIndex>},
    {"ldmatrix_wrong_row", run_product<Bug::kRow>},
    {"ldmatrix_misaligned_row", run_product<Bug::kMisaligned>},
    {"ldmatrix_not_transposed", run_product<Bug::kNotTransposed>},
    {"mma_in_half_a_warp", run_product<Bug::kHalfTheWarp>},
};
extern const ScenarioList matrices{kScenarios, std::size(kScenarios)};

}  // namespace planted
