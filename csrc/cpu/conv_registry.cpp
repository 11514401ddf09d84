#include <cstring>

#include "conv_algorithm.h"

namespace fastconv::cpu {
namespace {
const ConvAlgorithm* const kAlgorithms[] = {
    &conv_direct,
    &conv_im2col,
    &conv_winograd_f2x2_3x3,
    &conv_winograd_f4x4_3x3,
};
}  // namespace

AlgorithmList conv_algorithms() {
  return {kAlgorithms, static_cast<int>(sizeof(kAlgorithms) / sizeof(kAlgorithms[0]))};
}

const ConvAlgorithm* find_conv_algorithm(const char* name) {
  for (const ConvAlgorithm* a : kAlgorithms)
    if (std::strcmp(a->name, name) == 0) return a;
  return nullptr;
}

}  // namespace fastconv::cpu
