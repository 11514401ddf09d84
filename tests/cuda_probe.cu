// What tests call of the CUDA kernels beside the emulation's module (tests/cuda_probe.py compiles
// and loads it): instances of the batched GEMM, and convolutions on memory that is used in place.
#include <cstring>
#include <string>

#include "detail/gemm_batched.cuh"
#include "guarded_buffers.h"
#include "scheduler.h"

using namespace fastconv::cuda;

namespace {

using Fma = GemmTile<float, GemmMath::kFma, 128, 64, 32, 64, 4, 3>;
using Tf32 = GemmTile<float, GemmMath::kTf32, 64, 128, 32, 64, 3, 2>;
using Bf16 = GemmTile<__nv_bfloat16, GemmMath::kMma16, 128, 128, 64, 32, 4, 2>;
using Half = GemmTile<__half, GemmMath::kMma16, 64, 64, 32, 32, 2, 3>;

using Launch = int (*)(GemmBatchedParams, void*);
struct Instance {
  const char* name;  // dtype, orientation of A and B (k: contiguous along K), elements per copy
  Launch launch;
};

#define FOUR(name, Tile, out_t, VEC)                                               \
  {name "_kk_vec", launch_gemm_batched<Tile, out_t, true, true, VEC, VEC>},        \
      {name "_kn_vec", launch_gemm_batched<Tile, out_t, true, false, VEC, VEC>},   \
      {name "_mk_vec", launch_gemm_batched<Tile, out_t, false, true, VEC, VEC>}, { \
    name "_mn_vec", launch_gemm_batched<Tile, out_t, false, false, VEC, VEC>       \
  }

const Instance kInstances[] = {
    FOUR("f32", Fma, float, 4),
    FOUR("tf32", Tf32, float, 4),
    FOUR("bf16", Bf16, float, 8),
    FOUR("f16", Half, __half, 8),
    {"f32_kn_one", launch_gemm_batched<Fma, float, true, false, 1, 1>},
    {"tf32_mk_one", launch_gemm_batched<Tf32, float, false, true, 1, 1>},
    {"bf16_kk_one", launch_gemm_batched<Bf16, __nv_bfloat16, true, true, 1, 1>},
    {"f16_mn_one", launch_gemm_batched<Half, float, false, false, 1, 1>},
};

std::string error;

}  // namespace

extern "C" const char* gemm_instance(int index) {
  return index < static_cast<int>(std::size(kInstances)) ? kInstances[index].name : nullptr;
}

// Operands are copied between guard pages; c too, and back. Returns the error's text, or "".
extern "C" const char* run_gemm(int index, const void* a, int64_t a_bytes, const void* b,
                                int64_t b_bytes, void* c, int64_t c_bytes,
                                const GemmBatchedParams* params, int element, int out_element,
                                int seed, int placement) {
  const auto place = static_cast<emu::Placement>(placement);
  const emu::GuardedBuffer at("A", emu::Role::kInput, a_bytes, element, element, place);
  const emu::GuardedBuffer bt("B", emu::Role::kInput, b_bytes, element, element, place);
  const emu::GuardedBuffer ct("C", emu::Role::kOutput, c_bytes, out_element, out_element, place);
  std::memcpy(at.data(), a, a_bytes);
  std::memcpy(bt.data(), b, b_bytes);
  std::memcpy(ct.data(), c, c_bytes);
  GemmBatchedParams p = *params;
  p.a = at.data(), p.b = bt.data(), p.c = ct.data();
  emu::Settings settings;
  settings.seed = static_cast<uint64_t>(seed);
  emu::begin_run(settings);
  const int code = kInstances[index].launch(p, nullptr);
  emu::Statistics statistics;
  error = emu::end_run(&statistics);
  if (error.empty() && code != 0) error = "the launcher returned " + std::to_string(code);
  if (error.empty() && !(at.margins_intact() && bt.margins_intact() && ct.margins_intact()))
    error = "the kernel wrote outside of a buffer";
  std::memcpy(c, ct.data(), c_bytes);
  return error.c_str();
}
