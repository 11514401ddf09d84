// Fills what a kernel has to know of where its result goes.
#pragma once
#include "conv_algorithm.h"
#include "detail/conv_result.cuh"
#include "tensor_map.h"

namespace fastconv::cuda {

// y or dx in NHWC, of so many pixels in all images; bias and epilogue are fprop's.
inline ConvResult conv_result(const ConvCall& call, Direction direction, int scalar_bytes,
                              int64_t pixels) {
  const ConvProblem& c = call.problem;
  const bool dgrad = direction == Direction::kDgrad;
  const auto aligned = [](const void* base, int64_t pitch, int64_t unit) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch % unit == 0;
  };
  ConvResult r{};
  r.base = dgrad ? call.x : call.y;
  r.pitch = dgrad ? c.C : call.y_channels();
  r.pixels = static_cast<int>(pixels);
  r.channels = static_cast<int>(dgrad ? c.C : c.K);
  r.vec8 = aligned(r.base, r.pitch, 8);
  r.by_tma = aligned(r.base, r.pitch, 16 / scalar_bytes);
  if (dgrad) return r;
  r.bias = call.bias;
  r.epilogue = store_epilogue<float>(call.epilogue);
  r.residual_vec8 = aligned(call.epilogue.residual, c.K, 8);
  return r;
}

// The map of a result that is stored by TMA, [pixels, channels], in boxes of `rows` pixels and 128
// bytes. Returns the cudaError_t.
inline int encode_result_map(TensorMap* map, const ConvResult& r, DType dtype, int scalar_bytes,
                             int rows) {
  const auto unsigned64 = [](int64_t v) { return static_cast<uint64_t>(v); };
  const uint64_t element = unsigned64(scalar_bytes);
  const TensorAxes axes{r.base,
                        dtype,
                        2,
                        {unsigned64(r.channels), unsigned64(r.pixels)},
                        {element, element * unsigned64(r.pitch)},
                        true};
  const uint32_t box[2] = {128u / static_cast<uint32_t>(scalar_bytes), static_cast<uint32_t>(rows)};
  return encode_tile_map(map, axes, box);
}

}  // namespace fastconv::cuda
