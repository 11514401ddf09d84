// One box by TMA into poisoned shared memory, which is then dumped as it lies there.
#pragma once
#include "cuda/tensor_map.h"
#include "device.h"

namespace assumptions {

enum class CopyKind { kTile3, kTile4, kIm2col4, kIm2col5 };

// `boxes` loads from coordinates at[i], each of `bytes` bytes, one behind the other. Of a cluster,
// block i issues load i for both blocks of its pair, which is blocks 0 and 1, or 2 and 3.
struct BoxCopy {
  CopyKind kind;
  int boxes, bytes;
  int at[4][5];
  int offset[3];
};

// What shared memory holds before: no bf16 number that the checks use, and not zero.
constexpr uint32_t kPoison = 0x7FED7FEDu;

// [blocks of the cluster][boxes * bytes / 4]; cluster: 1, 2 or 4.
Words copied_boxes(const fastconv::cuda::TensorMap& map, const BoxCopy& copy, int cluster);

// bf16 numbers by which every element of a tensor is known.
std::vector<uint16_t> numbered(size_t count);
// As words, as they lie in the 128B swizzle: rows of 64 elements.
Words swizzled_rows(const std::vector<uint16_t>& rows);

}  // namespace assumptions
