// How tensor cores end a sum: they do not round but drop what does not fit. Source: Fasi, Higham,
// Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021, section 4 (where the few
// bits are counted that terms keep while they are aligned: here all of them).
#pragma once
#include <cmath>
#include <cstdint>

#include "half_types.h"

namespace emu {

// To fp32, toward zero; what is beyond its range becomes infinite.
inline float cut_off(double sum) {
  const float nearest = static_cast<float>(sum);
  const uint32_t bits = bit_cast<uint32_t>(nearest);
  const bool away = std::abs(double(nearest)) > std::abs(sum);
  const bool infinite = (bits & 0x7FFFFFFFu) == 0x7F800000u;
  return bit_cast<float>(bits - (away & !infinite ? 1u : 0u));
}

}  // namespace emu
