#include <cstring>
#include <limits>

#include "conv_algorithm.h"
#include "conv_halo.h"
#include "conv_rows.h"

namespace fastconv::cuda {
namespace {
// One line per algorithm; the tables live in its launcher file.
// clang-format off
const ConvAlgorithm* const kAlgorithms[] = {
    &conv_depthwise,
    &conv_direct,
    &conv_winograd_f2x2_3x3,
    &conv_winograd_f4x4_3x3,
    &conv_halo,
    &conv_rows,
    &conv_tma,
    &conv_im2col,
    &conv_direct_plain,
};
// clang-format on
constexpr int kCount = sizeof(kAlgorithms) / sizeof(kAlgorithms[0]);
}  // namespace

AlgorithmList conv_algorithms() { return {kAlgorithms, kCount}; }

const ConvAlgorithm* find_conv_algorithm(const char* name) {
  for (int i = 0; i < kCount; ++i)
    if (std::strcmp(kAlgorithms[i]->name, name) == 0) return kAlgorithms[i];
  return nullptr;
}

std::string capability_refusal(const ConvInstance& instance, const Device& device) {
  const auto text = [](int capability) {
    return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
  };
  return instance.runs_on(device) ? std::string()
                                  : "it is for compute capability " + text(instance.capability) +
                                        ", the device has " + text(device.capability);
}

const ConvInstance* choose_instance(const ConvAlgorithm& algorithm, const ConvProblem& problem,
                                    Direction direction, DType dtype, Layout layout,
                                    Products products, const Device& device, std::string* reason) {
  const ConvInstance* best = nullptr;
  double best_cost = std::numeric_limits<double>::infinity();
  std::string why = "no kernel for this direction, dtype and layout";
  for (int i = 0; i < algorithm.size; ++i) {
    const ConvInstance& instance = algorithm.instances[i];
    if (instance.direction != direction || instance.dtype != dtype || instance.layout != layout ||
        instance.products > products)
      continue;
    std::string refused = capability_refusal(instance, device);
    if (refused.empty()) refused = instance.applicable(problem);
    if (!refused.empty()) {
      why = std::move(refused);
      continue;
    }
    const double cost = instance.cost(problem, device);
    if (best == nullptr || cost < best_cost) {
      best = &instance;
      best_cost = cost;
    }
  }
  if (best == nullptr && reason != nullptr) *reason = why;
  return best;
}

}  // namespace fastconv::cuda
