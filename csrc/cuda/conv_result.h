// Fills what a kernel has to know of where its result goes.
#pragma once
#include "conv_algorithm.h"
#include "detail/conv_result.cuh"

namespace fastconv::cuda {

// y or dx in NHWC, of so many pixels in all images; bias and epilogue are fprop's.
inline ConvResult conv_result(const ConvCall& call, Direction direction, int64_t pixels) {
  const ConvProblem& c = call.problem;
  const bool dgrad = direction == Direction::kDgrad;
  const auto vec8 = [](const void* base, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch % 8 == 0;
  };
  ConvResult r{};
  r.base = dgrad ? call.x : call.y;
  r.pitch = dgrad ? c.C : call.y_channels();
  r.pixels = static_cast<int>(pixels);
  r.channels = static_cast<int>(dgrad ? c.C : c.K);
  r.vec8 = vec8(r.base, r.pitch);
  if (dgrad) return r;
  r.bias = call.bias;
  r.epilogue = store_epilogue<float>(call.epilogue);
  r.residual_vec8 = vec8(call.epilogue.residual, c.K);
  return r;
}

}  // namespace fastconv::cuda
