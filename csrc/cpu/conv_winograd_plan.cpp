#include "conv_winograd_plan.h"

#include <algorithm>

#include "conv_winograd_layout.h"

namespace fastconv::cpu::winograd {
namespace {

// V of a chunk (wgrad: and U) is read by every block of output channels: it should stay in the
// last cache level.
constexpr int64_t kChunkBytes = 8 << 20;
// With groups every thread may have its own.
constexpr int64_t kGroupChunkBytes = 1 << 20;
// M of a chunk and U of a block share the second cache level.
constexpr int64_t kChunkTiles4 = 128, kChunkTiles2 = 256;

int64_t tile_bytes(const WinogradPlan& p, int bytes, Direction direction) {
  const int64_t n2 = (p.tile_out + 2) * (p.tile_out + 2);
  if (direction == Direction::kWgrad)
    return n2 * bytes *
           (round_up(p.C, width(bytes)) + blocks_of(p.K, rows(bytes)) * row_stride(bytes));
  return n2 * bytes * blocks_of(p.C, depth(bytes)) * depth(bytes);
}

}  // namespace

int storage_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
int acc_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

WinogradPlan make_winograd_plan(const ConvProblem& p, DType dtype, Direction direction,
                                int tile_out) {
  WinogradPlan plan{};
  plan.tile_out = tile_out;
  plan.N = p.N;
  plan.C = p.channels_per_group();
  plan.K = p.filters_per_group();
  plan.in_h = p.in[1];
  plan.in_w = p.in[2];
  plan.out_h = p.out[1];
  plan.out_w = p.out[2];
  plan.pad_h = p.padding[1];
  plan.pad_w = p.padding[2];
  if (direction == Direction::kDgrad) {
    std::swap(plan.C, plan.K);
    std::swap(plan.in_h, plan.out_h);
    std::swap(plan.in_w, plan.out_w);
    plan.pad_h = 2 - plan.pad_h;
    plan.pad_w = 2 - plan.pad_w;
  }
  plan.tiles_y = blocks_of(plan.out_h, tile_out);
  plan.tiles_x = blocks_of(plan.out_w, tile_out);
  plan.strip_tiles = blocks_of(plan.tiles_x, blocks_of(plan.tiles_x, kWinogradMaxStripTiles));
  plan.strips_x = blocks_of(plan.tiles_x, plan.strip_tiles);
  plan.strips = plan.N * plan.tiles_y * plan.strips_x;
  const int64_t tiles = std::max<int64_t>(
      plan.strip_tiles, std::min(tile_out == 4 ? kChunkTiles4 : kChunkTiles2,
                                 (p.groups > 1 ? kGroupChunkBytes : kChunkBytes) /
                                     tile_bytes(plan, acc_bytes(dtype), direction)));
  plan.chunks = blocks_of(plan.strips, tiles / plan.strip_tiles);
  plan.chunk_strips = blocks_of(plan.strips, plan.chunks);
  plan.chunks = blocks_of(plan.strips, plan.chunk_strips);
  return plan;
}

WinogradChunk chunk_of(const WinogradPlan& p, int64_t index) {
  const auto first_tile = [&](int64_t strip) {
    return strip / p.strips_x * p.tiles_x + strip % p.strips_x * p.strip_tiles;
  };
  WinogradChunk chunk{};
  chunk.strip_begin = index * p.chunk_strips;
  chunk.strip_end = std::min(chunk.strip_begin + p.chunk_strips, p.strips);
  chunk.tile_begin = first_tile(chunk.strip_begin);
  chunk.tiles = first_tile(chunk.strip_end) - chunk.tile_begin;
  chunk.index = index;
  chunk.first = index == 0;
  chunk.last = index == p.chunks - 1;
  return chunk;
}

WinogradScratch scratch_of(const WinogradPlan& p, DType dtype, Direction direction) {
  const int bytes = acc_bytes(dtype);
  const int64_t n2 = (p.tile_out + 2) * (p.tile_out + 2);
  const int64_t tiles = p.chunk_strips * p.strip_tiles;
  WinogradScratch s{};
  if (direction == Direction::kWgrad) {
    // Enough for every instruction set's panel: the widest is rounded up most, the narrowest (half
    // a line) has the most pads.
    s.v = n2 * (round_up(p.C, width(bytes)) * tiles + blocks_of(p.C, 32 / bytes) * pad(bytes)) *
          bytes;
    s.u = blocks_of(p.K, rows(bytes)) * n2 * wgrad_u_step(tiles, bytes) * bytes;
    if (p.chunks > 1) s.partial = p.K * round_up(p.C, width(bytes)) * 9 * bytes;
    s.thread = std::max(n2 * wgrad_m_step(bytes) * bytes, kStageBytes);
  } else {
    s.v = blocks_of(p.C, depth(bytes)) * n2 * v_step(tiles, bytes) * bytes;
    s.thread = n2 * (u_step(bytes) + m_step(tiles, bytes)) * bytes + kStageBytes;
  }
  for (int64_t* part : {&s.v, &s.u, &s.partial, &s.thread}) *part = round_up(*part, kLine);
  return s;
}

}  // namespace fastconv::cpu::winograd
