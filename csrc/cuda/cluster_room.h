// How many clusters of so many blocks, one block to an SM, run at a time.
#pragma once
#include <algorithm>

#include "conv_algorithm.h"

namespace fastconv::cuda {

inline int cluster_room(const Device& device, int cluster) {
  constexpr int kMost = 18;  // SMs of a GPC, within which a cluster lies; they come in pairs
  const int parts = cluster <= 2 ? 1 : std::max(1, (device.sm_count + kMost - 1) / kMost);
  return std::max(1, parts * (device.sm_count / parts / cluster));
}

}  // namespace fastconv::cuda
