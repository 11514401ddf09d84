// From global to shared memory, for the tiled direct kernels: a box of positions with its channels
// converted to acc_t and interleaved in packs of 16 bytes, so that one shared load brings a
// position's kPack channels, whatever the storage type and layout.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "detail/fast_divmod.cuh"
#include "detail/scalar.cuh"

namespace fastconv::cuda {

// Channels per 16 bytes of acc_t: 4, or 2 in fp64.
template <class acc>
constexpr int kPack = 16 / static_cast<int>(sizeof(acc));

template <class acc, int SIZE>
struct alignas(16) AccPack {
  acc v[SIZE];
};

// A grid of rows x cols positions in one (n, depth) plane of a tensor.
struct StageBox {
  int rows, cols;          // positions
  int unit_h, unit_w;      // input positions from one to the next
  int extent_h, extent_w;  // of the tensor: positions outside are zero
  int64_t stride_c, stride_h, stride_w;
  // Column u is in slot (u % phases) * run + u / phases of its row: positions that neighbouring
  // outputs read with a step of `phases` are neighbours, and their loads free of bank conflicts.
  int run, pitch;   // slots per phase, per row
  int slot_stride;  // elements of acc_t
  int pack_stride;  // elements of acc_t
  int packs_log2;   // of the packs in a full step
  FastDivmod by_cols, by_phases;
  bool vector_loads;  // channels_last: whole packs are aligned
};

// kPack channels of one position, zero beyond `channels` (which may exceed the pack).
template <class scalar_t, bool channels_last>
__device__ __forceinline__ AccPack<acc_t<scalar_t>, kPack<acc_t<scalar_t>>> load_pack(
    const scalar_t* __restrict__ source, int64_t stride_c, int channels, bool vector_loads) {
  using acc = acc_t<scalar_t>;
  constexpr int PACK = kPack<acc>;
  AccPack<acc, PACK> pack;
  if (channels_last && vector_loads && channels >= PACK) {
    if constexpr (sizeof(scalar_t) == sizeof(acc)) {
      pack = *reinterpret_cast<const AccPack<acc, PACK>*>(source);
    } else {
      const uint2 raw = *reinterpret_cast<const uint2*>(source);
      scalar_t value[PACK];
      memcpy(value, &raw, sizeof(raw));
#pragma unroll
      for (int i = 0; i < PACK; ++i) pack.v[i] = to_acc(value[i]);
    }
    return pack;
  }
  scalar_t value[PACK] = {};
#pragma unroll
  for (int i = 0; i < PACK; ++i)
    if (i < channels) value[i] = source[channels_last ? i : i * stride_c];
#pragma unroll
  for (int i = 0; i < PACK; ++i) pack.v[i] = to_acc(value[i]);
  return pack;
}

// Stores SIZE elements at an address aligned to 16 bytes, or to all of them where they are fewer.
template <class scalar_t, int SIZE>
__device__ __forceinline__ void store_vectors(scalar_t* to, const scalar_t (&value)[SIZE]) {
  constexpr int BYTES = SIZE * static_cast<int>(sizeof(scalar_t));
  using Vector = std::conditional_t<BYTES % 16 == 0, uint4, uint2>;
  static_assert(BYTES % sizeof(Vector) == 0, "whole vectors");
  Vector raw[BYTES / sizeof(Vector)];
  memcpy(raw, value, BYTES);
#pragma unroll
  for (int i = 0; i < BYTES / static_cast<int>(sizeof(Vector)); ++i)
    reinterpret_cast<Vector*>(to)[i] = raw[i];
}

// staged[pack * pack_stride + slot * slot_stride] = kPack channels. `source` points to the first
// staged channel at position (0, 0) of the plane; (h0, w0) is the box's corner, `channels` how many
// are left from the first staged one on.
template <class scalar_t, bool channels_last, int THREADS>
__device__ __forceinline__ void stage_box(const StageBox& box, const scalar_t* __restrict__ source,
                                          int h0, int w0, int channels,
                                          acc_t<scalar_t>* __restrict__ staged) {
  using acc = acc_t<scalar_t>;
  constexpr int PACK = kPack<acc>;
  using Pack = AccPack<acc, PACK>;
  const int packs = min(1 << box.packs_log2, (channels + PACK - 1) / PACK);
  const int positions = box.rows * box.cols;
  // Channels-last: neighbouring threads take neighbouring packs of a position.
  const int items = channels_last ? positions << box.packs_log2 : positions;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += THREADS) {
    const int first_pack = channels_last ? item & ((1 << box.packs_log2) - 1) : 0;
    if (first_pack >= packs) continue;
    const int position = channels_last ? item >> box.packs_log2 : item;
    uint32_t col, phase;
    const int row = static_cast<int>(box.by_cols.divmod(position, col));
    const int slot = static_cast<int>(box.by_phases.divmod(col, phase));
    const int h = h0 + row * box.unit_h, w = w0 + static_cast<int>(col) * box.unit_w;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(box.extent_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(box.extent_w);
    acc* to = staged +
              (row * box.pitch + static_cast<int>(phase) * box.run + slot) * box.slot_stride +
              first_pack * box.pack_stride;
    if (!inside) {
      const Pack zero = {};
      for (int pack = first_pack; pack < packs; ++pack, to += box.pack_stride) {
        *reinterpret_cast<Pack*>(to) = zero;
        if (channels_last) break;
      }
      continue;
    }
    const scalar_t* from = source + h * box.stride_h + w * box.stride_w + first_pack * PACK;
    if constexpr (channels_last) {
      *reinterpret_cast<Pack*>(to) =
          load_pack<scalar_t, true>(from, 1, channels - first_pack * PACK, box.vector_loads);
    } else {
#pragma unroll 2
      for (int pack = 0; pack < packs; ++pack) {
        *reinterpret_cast<Pack*>(to) =
            load_pack<scalar_t, false>(from, box.stride_c, channels - pack * PACK, false);
        from += PACK * box.stride_c;
        to += box.pack_stride;
      }
    }
  }
}

// One axis of a block of weights: how many, and the steps to the next in the tensor and in shared
// memory, in elements.
struct WeightAxis {
  int extent, from_step, to_step;
};

// Copies extent[0] x extent[1] x extent[2] weights, axis 0 fastest. Every thread walks the three
// axes like an odometer: two divisions for the block instead of two for every weight.
template <class scalar_t, int THREADS>
__device__ __forceinline__ void stage_weights(const scalar_t* __restrict__ from,
                                              const WeightAxis (&axis)[3],
                                              acc_t<scalar_t>* __restrict__ to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int e0 = axis[0].extent, e1 = axis[1].extent;
  const int total = e0 * e1 * axis[2].extent;
  int at0 = thread % e0, at1 = thread / e0 % e1;
  const int d0 = THREADS % e0, d1 = THREADS / e0 % e1, d2 = THREADS / e0 / e1;
  int source =
      at0 * axis[0].from_step + at1 * axis[1].from_step + thread / e0 / e1 * axis[2].from_step;
  int target = at0 * axis[0].to_step + at1 * axis[1].to_step + thread / e0 / e1 * axis[2].to_step;
  const int from_step = d0 * axis[0].from_step + d1 * axis[1].from_step + d2 * axis[2].from_step;
  const int to_step = d0 * axis[0].to_step + d1 * axis[1].to_step + d2 * axis[2].to_step;
  const int from_carry0 = axis[1].from_step - e0 * axis[0].from_step;
  const int to_carry0 = axis[1].to_step - e0 * axis[0].to_step;
  const int from_carry1 = axis[2].from_step - e1 * axis[1].from_step;
  const int to_carry1 = axis[2].to_step - e1 * axis[1].to_step;
#pragma unroll 4
  for (int i = thread; i < total; i += THREADS) {
    to[target] = to_acc(from[source]);
    source += from_step;
    target += to_step;
    at0 += d0;
    at1 += d1;
    if (at0 >= e0) {
      at0 -= e0;
      ++at1;
      source += from_carry0;
      target += to_carry0;
    }
    if (at1 >= e1) {
      at1 -= e1;
      source += from_carry1;
      target += to_carry1;
    }
  }
}

}  // namespace fastconv::cuda
