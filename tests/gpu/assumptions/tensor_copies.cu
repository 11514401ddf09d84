// TMA's tile mode: the swizzle, what is outside, TF32, multicasts, stores.
#include "copy_box.h"

#include <algorithm>

#include "detail/mma.cuh"
#include "detail/tma_store.cuh"

namespace assumptions::tensor_copies {
using namespace fastconv::cuda;

namespace {

// x [H, W, C], or [N, H, W, C] with `images`; boxes of [.., 4, 4, 64].
constexpr int kBoxW = 4, kBoxH = 4, kRows = kBoxW * kBoxH;

enum class Outside { kZero, kNearest, kUntouched };

struct Tile {
  int images, h, w, c;
  int at[5];  // {c, w, h[, n]}
};

std::vector<uint16_t> box_of(const Tile& p, const std::vector<uint16_t>& x, const int* at,
                             Outside outside) {
  std::vector<uint16_t> box(kRows * 64);
  const auto put = [&](int place, int extent, bool* inside) {
    *inside = *inside && place >= 0 && place < extent;
    return place < 0 ? 0 : place >= extent ? extent - 1 : place;
  };
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < 64; ++i) {
      bool inside = true;
      const int c = put(at[0] + i, p.c, &inside), w = put(at[1] + row % kBoxW, p.w, &inside);
      const int h = put(at[2] + row / kBoxW, p.h, &inside), n = put(at[3], p.images, &inside);
      const uint16_t value = x[((size_t(n) * p.h + h) * p.w + w) * p.c + c];
      const uint16_t other = outside == Outside::kZero        ? uint16_t(0)
                             : outside == Outside::kUntouched ? uint16_t(kPoison & 0xFFFF)
                                                              : value;
      box[row * 64 + i] = inside ? value : other;
    }
  return box;
}

struct Made {
  std::vector<uint16_t> x;
  Memory memory;
  TensorMap map{};
  int code;

  explicit Made(const Tile& p) : x(numbered(size_t(p.images) * p.h * p.w * p.c)), memory(x) {
    TensorAxes axes{memory.as<void>(), fastconv::DType::kBFloat16, p.images > 1 ? 4 : 3, {}, {}};
    const int extents[4] = {p.c, p.w, p.h, p.images};
    uint64_t stride = 2;
    for (int i = 0; i < axes.rank; ++i) {
      axes.extent[i] = extents[i];
      axes.stride[i] = stride;
      stride *= extents[i];
    }
    const uint32_t box[4] = {64, kBoxW, kBoxH, 1};
    code = encode_tile_map(&map, axes, box);
  }
};

Outcome load(const Tile& p) {
  const Made made(p);
  if (made.code != cudaSuccess) return {false, "the driver refuses the tensor map"};
  BoxCopy copy{p.images > 1 ? CopyKind::kTile4 : CopyKind::kTile3, 1, kRows * 128, {}, {}};
  for (int i = 0; i < 5; ++i) copy.at[0][i] = p.at[i];
  const Words got = copied_boxes(made.map, copy, 1);
  return judge(got, {{"zero", swizzled_rows(box_of(p, made.x, p.at, Outside::kZero))},
                     {"the nearest", swizzled_rows(box_of(p, made.x, p.at, Outside::kNearest))},
                     {"untouched", swizzled_rows(box_of(p, made.x, p.at, Outside::kUntouched))}});
}

Outcome swizzle() {
  const Tile p{1, 5, 6, 64, {0, 1, 1}};
  const Made made(p);
  if (made.code != cudaSuccess) return {false, "the driver refuses the tensor map"};
  BoxCopy copy{CopyKind::kTile3, 1, kRows * 128, {{0, 1, 1}}, {}};
  const Words got = copied_boxes(made.map, copy, 1);
  const std::vector<uint16_t> box = box_of(p, made.x, p.at, Outside::kZero);
  std::vector<uint16_t> halves = box;  // bits 4 and 5 alone: the pattern of 64 bytes
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < 64; ++i) halves[row * 64 + (i ^ (row & 4) * 8)] = box[row * 64 + i];
  Words plain(box.size() / 2);
  for (size_t i = 0; i < plain.size(); ++i) plain[i] = box[2 * i] | uint32_t(box[2 * i + 1]) << 16;
  return judge(got, {{"bits 4 to 6 of the address XOR bits 7 to 9", swizzled_rows(box)},
                     {"none", plain},
                     {"bits 4 and 5 alone", swizzled_rows(halves)}});
}

Outcome multicast() {
  const Tile p{1, 6, 8, 64, {0, 1, 1, 0}};
  const Made made(p);
  if (made.code != cudaSuccess) return {false, "the driver refuses the tensor map"};
  const int other[5] = {0, 4, -1, 0, 0};
  BoxCopy copy{CopyKind::kTile3, 2, kRows * 128, {}, {}};
  for (int i = 0; i < 5; ++i) copy.at[0][i] = p.at[i], copy.at[1][i] = other[i];
  const Words got = copied_boxes(made.map, copy, 2);
  const auto pair = [&](const Words& a, const Words& b) {
    Words both = a;
    both.insert(both.end(), b.begin(), b.end());
    return both;
  };
  const Words a = swizzled_rows(box_of(p, made.x, p.at, Outside::kZero));
  const Words b = swizzled_rows(box_of(p, made.x, other, Outside::kZero));
  const Words none(a.size(), kPoison);
  return judge(got, {{"both blocks have both boxes", pair(pair(a, b), pair(a, b))},
                     {"each block has its own", pair(pair(a, none), pair(none, b))},
                     {"each block has the other's", pair(pair(none, b), pair(a, none))}});
}

// Two pairs of a cluster of four, each with boxes of its own.
Outcome multicast_masks() {
  const Tile p{1, 6, 8, 64, {0, 1, 1}};
  const Made made(p);
  if (made.code != cudaSuccess) return {false, "the driver refuses the tensor map"};
  const int at[4][5] = {{0, 1, 1}, {0, 4, -1}, {0, 0, 2}, {0, 3, 0}};
  BoxCopy copy{CopyKind::kTile3, 2, kRows * 128, {}, {}};
  Words boxes[4];
  for (int block = 0; block < 4; ++block) {
    for (int i = 0; i < 5; ++i) copy.at[block][i] = at[block][i];
    boxes[block] = swizzled_rows(box_of(p, made.x, at[block], Outside::kZero));
  }
  const Words got = copied_boxes(made.map, copy, 4);
  const auto of = [&](const int(&which)[8]) {
    Words words;
    for (const int i : which) words.insert(words.end(), boxes[i].begin(), boxes[i].end());
    return words;
  };
  return judge(got, {{"each pair has its own", of({0, 1, 0, 1, 2, 3, 2, 3})},
                     {"the pairs have each other's", of({2, 3, 2, 3, 0, 1, 0, 1})},
                     {"all have the first pair's", of({0, 1, 0, 1, 0, 1, 0, 1})}});
}

// fp32 numbers that every way to round to TF32 takes elsewhere.
Outcome tf32(bool exact) {
  std::vector<float> x(32 * 16);
  for (unsigned i = 0; i < x.size(); ++i) {
    const uint32_t tail = i % 4 == 0   ? 0x1000u  // a tie
                          : i % 4 == 1 ? 0x1001u
                          : i % 4 == 2 ? 0x0FFFu
                                       : i * 37 % 0x2000u;
    x[i] = float_of((i % 3 == 0 ? 0x80000000u : 0u) | (100u + i % 50) << 23 |
                    (i * 77 % 1024) << 13 | tail);
  }
  x[5] = float_of(0x7F7FFFFFu);  // beyond the largest TF32 number
  const Memory memory(x);
  TensorAxes axes{
      memory.as<void>(), fastconv::DType::kFloat32, 3, {32, 16, 1}, {4, 128, 2048}, exact};
  const uint32_t box[3] = {32, 16, 1};
  TensorMap map;
  if (encode_tile_map(&map, axes, box) != cudaSuccess)
    return {false, "the driver refuses the tensor map"};
  const Words got = copied_boxes(map, {CopyKind::kTile3, 1, 2048, {}, {}}, 1);
  const auto rounded = [&](auto round) {
    Words words(x.size());
    for (size_t i = 0; i < x.size(); ++i) words[swizzled_place(4 * i) / 4] = round(bits_of(x[i]));
    return words;
  };
  std::vector<Reading> readings{
      {"to nearest, ties away", rounded([](uint32_t v) { return (v + 0x1000u) & ~0x1FFFu; })},
      {"unchanged", rounded([](uint32_t v) { return v; })},
      {"to nearest, ties to even",
       rounded([](uint32_t v) { return (v + 0xFFFu + (v >> 13 & 1)) & ~0x1FFFu; })},
      {"toward zero", rounded([](uint32_t v) { return v & ~0x1FFFu; })}};
  if (exact) std::swap(readings[0], readings[1]);
  return judge(got, readings);
}

// Stores a box [8][64] that lies over the right and lower edge. Once its source has been read, that
// is written again; once it is stored, the whole block reads the tensor [words], whose lines it has
// in L1 from before: seen [words].
__global__ void __launch_bounds__(128, 1)
    store_box_kernel(const __grid_constant__ TensorMap map, const uint32_t* from, int c, int row,
                     const uint32_t* tensor, uint32_t* seen, int words) {
#if defined(FC_SM90A)
  FC_DYN_SHARED(unsigned char, dynamic);
  unsigned char* const start =
      dynamic + (1024 - reinterpret_cast<uintptr_t>(dynamic) % 1024) % 1024;
  uint32_t* const box = reinterpret_cast<uint32_t*>(start);
  for (int i = threadIdx.x; i < 8 * 32; i += blockDim.x) box[i] = from[i];
  for (int i = threadIdx.x; i < words; i += blockDim.x) seen[i] = tensor[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_tile(&map, box, c, row);
    tma_store_commit();
    tma_store_wait_read<0>();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * 32; i += blockDim.x) box[i] = kPoison;
  if (threadIdx.x == 0) tma_store_wait<0>();
  __syncthreads();
  __threadfence();  // past L1
  for (int i = threadIdx.x; i < words; i += blockDim.x) seen[i] = tensor[i];
#endif
}

Outcome store() {
  constexpr int kC = 80, kHeight = 5, kC0 = 32, kRow0 = 2;
  const std::vector<uint16_t> box = numbered(8 * 64);
  constexpr int kWords = (kHeight + 4) * kC / 2;  // four rows more than the tensor has
  const Memory in(swizzled_rows(box)), out(kWords * 4), seen(kWords * 4);
  TensorAxes axes{out.as<void>(), fastconv::DType::kBFloat16, 2, {kC, kHeight}, {2, 2 * kC}};
  const uint32_t extents[2] = {64, 8};
  TensorMap map;
  if (encode_tile_map(&map, axes, extents) != cudaSuccess)
    return {false, "the driver refuses the tensor map"};
  const LaunchConfig config{dim3(1), dim3(128), 2048, nullptr};
  finish([&] {
    return launch_kernel(store_box_kernel, config, map, in.as<const uint32_t>(), kC0, kRow0,
                         out.as<const uint32_t>(), seen.as<uint32_t>(), kWords);
  });
  const auto stored = [&](bool clips, bool turned, bool late = false) {
    std::vector<uint16_t> y((kHeight + 4) * kC, 0xFFFF);
    for (int r = 0; r < 8; ++r)
      for (int i = 0; i < 64; ++i)
        if (!clips || (kRow0 + r < kHeight && kC0 + i < kC))
          if (const size_t to = size_t(kRow0 + r) * kC + kC0 + i; to < y.size())
            y[to] = late ? uint16_t(kPoison & 0xFFFF) : box[r * 64 + (turned ? i ^ r * 8 : i)];
    Words words(kWords);
    for (size_t i = 0; i < kWords; ++i) words[i] = y[2 * i] | uint32_t(y[2 * i + 1]) << 16;
    Words both = words;
    both.insert(both.end(), words.begin(), words.end());
    return both;
  };
  Words unseen = stored(true, false);
  std::fill(unseen.begin() + kWords, unseen.end(), 0xFFFFFFFFu);
  Words got = out.words();
  const Words second = seen.words();
  got.insert(got.end(), second.begin(), second.end());
  return judge(got, {{"clipped, out of the swizzle", stored(true, false)},
                     {"not clipped", stored(false, false)},
                     {"clipped, as it lies", stored(true, true)},
                     {"what the source held later", stored(true, false, true)},
                     {"stored, and not seen by the block", unseen}});
}

}  // namespace

std::vector<Check> checks() {
  return {
      {"tile_swizzle",
       "the 128B swizzle is of the address in shared memory, anchored at 1024 bytes",
       "everything that TMA writes", 90, swizzle},
      {"tile_outside", "what is outside of the tensor reads as zero, and counts as bytes",
       "tma's filters, wgrad's dy", 90, [] { return load({1, 6, 7, 80, {64, 5, 4, 0}}); }},
      {"tile_before", "coordinates below zero read as zero, in four dimensions too", "halo", 90,
       [] { return load({3, 6, 7, 64, {0, -2, -1, 2}}); }},
      {"tile_multicast", "a multicast of tiles reaches every block in the mask, at the same place",
       "tma of clusters", 90, multicast},
      {"tile_multicast_masks", "the bits of a multicast's mask are ranks in the cluster",
       "tma of pairs that split gemm_k", 90, multicast_masks},
      {"tile_tf32", "fp32 through a map of TF32 is rounded to nearest, ties away from zero",
       "TF32 through tma: its tolerance and its agreement with cvt.rna", 90,
       [] { return tf32(false); }},
      {"tile_fp32", "fp32 through a map of FLOAT32 keeps every bit", "fp32 in three products", 90,
       [] { return tf32(true); }},
      {"tile_store",
       "a store leaves out what is outside and undoes the swizzle; its waits can be relied on",
       "results that TMA stores", 90, store},
  };
}

}  // namespace assumptions::tensor_copies
