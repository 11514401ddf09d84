// What a TMA descriptor says, and which bytes a copy through it moves: the address model alone,
// without any notion of time. Rules of the driver's encode functions are checked where a map is
// made; a map that breaks one is refused as the driver would, with the reason kept.
//
// Sources: PTX ISA, "Tensors" (tile and im2col mode, bounding box, traversal stride, swizzling);
// CUDA driver API, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col. Where the two leave room
// (order of the corners, how a pixel walk wraps) the reading is that of CUTLASS, whose kernels run:
// everything spatial is innermost first, W, H, D.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

enum class Swizzle : int { kNone = 0, k32 = 1, k64 = 2, k128 = 3 };

constexpr int kTensorRank = 5;

struct alignas(64) TensorMap {
  static constexpr uint32_t kMagic = 0x7E57'0A9Eu;
  uint32_t magic;     // kMagic once encoded
  bool im2col, tf32;  // tf32: 4-byte elements are rounded to TF32 on the way
  int rank;
  unsigned element_bytes;
  Swizzle swizzle;
  const unsigned char* base;
  uint64_t extent[kTensorRank], stride[kTensorRank];  // stride in bytes; axis 0 is dense
  uint32_t box[kTensorRank];                          // tile mode
  uint32_t step[kTensorRank];                         // im2col: the stride of the walk
  int lower[3], upper[3];                             // im2col: corners of the pixel box
  uint32_t channels, pixels;                          // im2col: the box

  unsigned row_bytes() const { return element_bytes * (im2col ? channels : box[0]); }
  size_t bytes() const;
  int spatial() const { return rank - 2; }
  // One behind the last byte of the tensor.
  const unsigned char* end() const;
};

// Null, or why the driver refuses it.
const char* encode_tile(TensorMap* map, unsigned element_bytes, bool tf32, int rank,
                        const void* base, const uint64_t* extent, const uint64_t* stride,
                        const uint32_t* box, Swizzle swizzle);
const char* encode_im2col(TensorMap* map, unsigned element_bytes, bool tf32, int rank,
                          const void* base, const uint64_t* extent, const uint64_t* stride,
                          const int* lower, const int* upper, uint32_t channels, uint32_t pixels,
                          const uint32_t* step, Swizzle swizzle);

// Null, or why a load at these coordinates is outside of what the instruction takes.
const char* check_coordinates(const TensorMap& map, const int* at, const int* offset);

// The box in the order of shared memory before swizzling; what is outside of the tensor is zero.
void fetch_box(const TensorMap& map, const int* at, const int* offset, unsigned char* to);
// The reverse, tile mode: visit(to, from, bytes) for every run of bytes inside of the tensor.
void store_box(const TensorMap& map, const int* at, const unsigned char* from,
               void (*visit)(unsigned char* to, const unsigned char* from, size_t bytes));

// Where the byte at a shared-memory address goes: the index of its 16-byte chunk is XORed with bits
// 7 and up of the address.
inline uint32_t swizzled(uint32_t address, Swizzle mode) {
  const uint32_t mask = mode == Swizzle::k128  ? 7u
                        : mode == Swizzle::k64 ? 3u
                        : mode == Swizzle::k32 ? 1u
                                               : 0u;
  return address ^ ((address >> 7 & mask) << 4);
}
inline unsigned swizzle_span(Swizzle mode) {  // bytes of a row
  return mode == Swizzle::k128 ? 128 : mode == Swizzle::k64 ? 64 : mode == Swizzle::k32 ? 32 : 16;
}

// A matrix operand of wgmma in shared memory, as its 64-bit descriptor says. Source: PTX ISA,
// "Matrix descriptor format" and "Strides" of the asynchronous warpgroup level matrix layout.
struct OperandDescriptor {
  uint32_t start, leading, stride, base_offset;  // bytes, but for base_offset
  Swizzle swizzle;
  bool reserved_bits;  // any of those set
};
OperandDescriptor decode_descriptor(uint64_t bits);
// Null, or why the hardware would not read what the program means.
const char* check_descriptor(const OperandDescriptor& d, bool mn_major);
// Shared-memory address of the 16 bytes that hold element (mn, k) and its neighbours along the
// contiguous axis: 16 bytes of K, or of MN.
uint32_t operand_chunk(const OperandDescriptor& d, unsigned mn, unsigned k, unsigned element_bytes,
                       bool mn_major);

}  // namespace emu
