// wgmma: products of a warpgroup whose operands are read from shared memory (the first also from
// registers) and whose accumulators are written at some time between issue and wait. Here a product
// is computed in the wait that names its group; until then its accumulators read as NaN, and
// neither they nor the operands may change. Each of the four warps waits for its own 16 rows.
// Products are added up exactly and cut off, as in engines.cpp.
//
// Source: PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate".
#include <algorithm>
#include <cstring>

#include "access_checks.h"
#include "half_types.h"
#include "sm90_state.h"
#include "tensor_sums.h"
#include "worker.h"

namespace emu {

namespace {

Sm90State& state() { return current->block->worker->sm90; }
WarpProducts& products_of(const Fiber& f) {
  return f.block->worker->sm90.warps[f.linear / kWarpSize];
}

unsigned bytes_of(Operand type) { return type == Operand::kTf32 ? 4 : 2; }
unsigned depth_of(Operand type) { return 32 / bytes_of(type); }  // of gemm_k

// `rows` of an operand from row `first` on, as bytes: [rows][32] when K-major, [depth][rows]
// otherwise. Notes that they are read, and which addresses they span.
void read_operand(uint64_t bits, bool mn_major, Operand type, unsigned first, unsigned rows,
                  const char* which, std::vector<unsigned char>& out, uint32_t& low,
                  uint32_t& high) {
  const OperandDescriptor d = decode_descriptor(bits);
  if (const char* why = check_descriptor(d, mn_major))
    fail(std::string("wgmma: descriptor of ") + which + ": " + why);
  const unsigned element = bytes_of(type), depth = depth_of(type), per_chunk = 16 / element;
  unsigned char* const base = current->block->worker->shared.dynamic_base();
  out.resize(rows * 32);
  low = ~0u;
  high = 0;
  const auto take = [&](unsigned mn, unsigned k, size_t to) {
    const uint32_t at = operand_chunk(d, first + mn, k, element, mn_major);
    if (!in_shared(base + at, 16))
      fail(std::string("wgmma: ") + which + " goes outside of the block's shared memory");
    note_async_read(*current, base + at, 16, "wgmma");
    std::memcpy(&out[to], base + at, 16);
    low = std::min(low, at);
    high = std::max(high, at + 16);
  };
  if (mn_major) {
    for (unsigned k = 0; k < depth; ++k)
      for (unsigned mn = 0; mn < rows; mn += per_chunk) take(mn, k, (k * rows + mn) * element);
  } else {
    for (unsigned mn = 0; mn < rows; ++mn)
      for (unsigned chunk = 0; chunk < 2; ++chunk)
        take(mn, chunk * per_chunk, mn * 32 + chunk * 16);
  }
}

float value_of(const unsigned char* at, Operand type) {
  if (type == Operand::kTf32) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    return bit_cast<float>(bits & 0xFFFFE000u);  // the low 13 bits are not looked at
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return type == Operand::kHalf ? half_to_float(bits) : bfloat16_to_float(bits);
}

// To [depth][rows].
void widen(const std::vector<unsigned char>& bytes, bool mn_major, Operand type, unsigned rows,
           float* out) {
  const unsigned element = bytes_of(type), depth = depth_of(type);
  for (unsigned k = 0; k < depth; ++k)
    for (unsigned mn = 0; mn < rows; ++mn)
      out[k * rows + mn] =
          value_of(&bytes[mn_major ? (k * rows + mn) * element : mn * 32 + k * element], type);
}

// Accumulator i of a lane: row lane / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2.
float& accumulator(Accumulators& to, unsigned lane, unsigned i) {
  const unsigned row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
  return to.values[row * to.n + column];
}

const float kUnfinished = bit_cast<float>(0x7FED'FFEDu);
bool same_bits(float a, float b) { return std::memcmp(&a, &b, 4) == 0; }

uint64_t tag_of(const WarpgroupProduct& p) {
  return mix(p.a) ^ mix(p.b + 1) * 3 ^
         mix(p.n | p.accumulate << 16 | p.a_mn_major << 17 | p.b_mn_major << 18 |
             static_cast<unsigned>(p.type) << 19);
}

struct Issue {
  const WarpgroupProduct* product;
  float* d;
  const uint32_t* a;  // or null
};

// As [16][32] bytes. Register i of a lane holds four of them, of row lane / 4 + 8 (i % 2), from
// 4 (lane % 4) + 16 (i / 2) on: of 16-bit types and of TF32 alike.
void gather(const RegisterOperand& from, std::vector<unsigned char>& out) {
  out.resize(16 * 32);
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    for (unsigned i = 0; i < 4; ++i)
      std::memcpy(&out[(lane / 4 + i % 2 * 8) * 32 + lane % 4 * 4 + i / 2 * 16],
                  from.lanes[lane] + i, 4);
}

// The operand that the lanes' pointers name. One that is new has to be behind a fence; one that is
// known has to be as it was at the last one.
int find_register_operand(WarpProducts& warp, Fiber* lanes, std::vector<unsigned char>& bytes) {
  RegisterOperand mine;
  for (unsigned i = 0; i < kWarpSize; ++i)
    mine.lanes[i] = static_cast<const Issue*>(lanes[i].argument)->a;
  gather(mine, bytes);
  for (size_t i = 0; i < warp.register_operands.size(); ++i) {
    const RegisterOperand& known = warp.register_operands[i];
    if (std::memcmp(known.lanes, mine.lanes, sizeof mine.lanes) != 0) continue;
    if (known.fenced != bytes)
      fail("wgmma: operand A in registers was written after the last wgmma.fence");
    return static_cast<int>(i);
  }
  if (!warp.fenced) fail("wgmma without wgmma.fence after operand A in registers was written");
  mine.fenced = bytes;
  warp.register_operands.push_back(std::move(mine));
  return static_cast<int>(warp.register_operands.size()) - 1;
}

// The matrix of accumulators that the lanes' pointers name: a new one the first time.
size_t find_accumulators(WarpProducts& warp, Fiber* lanes, unsigned n) {
  float* pointers[kWarpSize];
  for (unsigned i = 0; i < kWarpSize; ++i)
    pointers[i] = static_cast<const Issue*>(lanes[i].argument)->d;
  for (size_t i = 0; i < warp.accumulators.size(); ++i)
    if (warp.accumulators[i].n == n &&
        std::memcmp(warp.accumulators[i].lanes, pointers, sizeof pointers) == 0)
      return i;
  warp.accumulators.emplace_back();
  Accumulators& made = warp.accumulators.back();
  std::memcpy(made.lanes, pointers, sizeof pointers);
  made.n = n;
  made.values.assign(size_t{16} * n, 0.f);
  return warp.accumulators.size() - 1;
}

void issue_product(Fiber* lanes, uint32_t) {
  const WarpgroupProduct& p = *static_cast<const Issue*>(lanes[0].argument)->product;
  const uint64_t tag = tag_of(p);
  for (unsigned i = 1; i < kWarpSize; ++i)
    if (tag_of(*static_cast<const Issue*>(lanes[i].argument)->product) != tag)
      fail("wgmma: the lanes of a warp give different operands");
  Sm90State& sm90 = state();
  sm90.used = true;
  const unsigned index = lanes[0].linear / kWarpSize;
  if (index / 4 * 4 + 4 > lanes[0].block->warp_count) fail("wgmma by an incomplete warpgroup");
  WarpProducts& warp = sm90.warps[index];
  std::vector<uint64_t>& issued = sm90.issued[index / 4];
  if (warp.issued == issued.size())
    issued.push_back(tag);
  else if (issued[warp.issued] != tag)
    fail("wgmma: the warps of a warpgroup give different operands");
  ++warp.issued;

  const size_t number = find_accumulators(warp, lanes, p.n);
  Accumulators& to = warp.accumulators[number];
  bool touched = !to.used;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    for (unsigned i = 0; i < p.n / 2; ++i) {
      float& in_register = to.lanes[lane][i];
      if (to.in_flight != 0) {
        if (!same_bits(in_register, kUnfinished))
          fail("wgmma: an accumulator was written while another wgmma was in flight");
        continue;
      }
      float& value = accumulator(to, lane, i);
      touched = touched || !same_bits(value, in_register);
      value = in_register;
      in_register = kUnfinished;
    }
  }
  if (touched && to.in_flight == 0 && !warp.fenced)
    fail(
        "wgmma without wgmma.fence before the first use of its accumulators, or after they were"
        " written");
  to.used = true;
  ++to.in_flight;
  warp.open.push_back({p, number, -1, {}, {}, {}, {}});
  PendingProduct& pending = warp.open.back();
  if (static_cast<const Issue*>(lanes[0].argument)->a != nullptr)
    pending.register_operand = find_register_operand(warp, lanes, pending.a);
  else
    read_operand(p.a, p.a_mn_major, p.type, index % 4 * 16, 16, "A", pending.a, pending.low[0],
                 pending.high[0]);
  read_operand(p.b, p.b_mn_major, p.type, 0, p.n, "B", pending.b, pending.low[1], pending.high[1]);
}

// d [16][n] += a [depth][16]^T b [depth][n]: the sum of all products of an element is cut off once.
__attribute__((optimize("O3"))) void multiply(float* __restrict d, const float* a, const float* b,
                                              unsigned n, unsigned depth) {
  double sums[256];
  for (unsigned row = 0; row < 16; ++row) {
    float* const to = d + row * n;
    for (unsigned j = 0; j < n; ++j) sums[j] = to[j];
    for (unsigned k = 0; k < depth; ++k) {
      const double by = a[k * 16 + row];
      const float* const from = b + k * n;
      for (unsigned j = 0; j < n; ++j) sums[j] += by * from[j];
    }
    for (unsigned j = 0; j < n; ++j) to[j] = cut_off(sums[j]);
  }
}

void finish_product(WarpProducts& warp, const PendingProduct& pending, unsigned index) {
  const WarpgroupProduct& p = pending.what;
  std::vector<unsigned char> a, b;
  uint32_t low, high;
  if (pending.register_operand >= 0) {
    gather(warp.register_operands[static_cast<size_t>(pending.register_operand)], a);
    if (a != pending.a)
      fail("wgmma: operand A in registers was written while the wgmma was in flight");
  } else {
    read_operand(p.a, p.a_mn_major, p.type, index % 4 * 16, 16, "A", a, low, high);
  }
  read_operand(p.b, p.b_mn_major, p.type, 0, p.n, "B", b, low, high);
  if (a != pending.a || b != pending.b)
    fail("wgmma: an operand in shared memory changed while the wgmma was in flight");
  float wide_a[16 * 16], wide_b[16 * 256];
  widen(a, p.a_mn_major, p.type, 16, wide_a);
  widen(b, p.b_mn_major, p.type, p.n, wide_b);
  Accumulators& to = warp.accumulators[pending.accumulators];
  if (!p.accumulate) std::fill(to.values.begin(), to.values.end(), 0.f);
  multiply(to.values.data(), wide_a, wide_b, p.n, depth_of(p.type));
  if (--to.in_flight != 0) return;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    for (unsigned i = 0; i < p.n / 2; ++i) {
      if (!same_bits(to.lanes[lane][i], kUnfinished))
        fail("wgmma: an accumulator was written while the wgmma was in flight");
      to.lanes[lane][i] = accumulator(to, lane, i);
    }
}

}  // namespace

void warpgroup_product(const WarpgroupProduct& product, float* d, Site site, const uint32_t* a) {
  if (product.n < 8 || product.n > 256 || product.n % 8 != 0)
    fail("wgmma: n is a multiple of 8 up to 256");
  if (product.type == Operand::kTf32 && (product.a_mn_major || product.b_mn_major))
    fail("wgmma: operands of TF32 are K-major");
  Issue mine{&product, d, a};
  warp_collective("wgmma", 0xFFFFFFFFu, &mine, issue_product, site);
}

void warpgroup_fence(Site site) {
  warp_collective(
      "wgmma.fence", 0xFFFFFFFFu, nullptr,
      [](Fiber* lanes, uint32_t) {
        WarpProducts& warp = products_of(lanes[0]);
        warp.fenced = true;
        for (RegisterOperand& operand : warp.register_operands) gather(operand, operand.fenced);
      },
      site);
}

void warpgroup_commit(Site site) {
  warp_collective(
      "wgmma.commit_group", 0xFFFFFFFFu, nullptr,
      [](Fiber* lanes, uint32_t) {
        WarpProducts& warp = products_of(lanes[0]);
        warp.groups.push_back(std::move(warp.open));
        warp.open.clear();
      },
      site);
}

void warpgroup_wait(unsigned pending, Site site) {
  warp_collective(
      "wgmma.wait_group", 0xFFFFFFFFu, &pending,
      [](Fiber* lanes, uint32_t) {
        WarpProducts& warp = products_of(lanes[0]);
        const unsigned left = *static_cast<const unsigned*>(lanes[0].argument);
        for (; warp.groups.size() > left; warp.groups.pop_front()) {
          for (const PendingProduct& product : warp.groups.front())
            finish_product(warp, product, lanes[0].linear / kWarpSize);
          warp.fenced = false;
        }
      },
      site);
}

bool read_by_products(const Sm90State& sm90, uint32_t low, uint32_t high, unsigned* warp) {
  const auto reads = [&](const std::vector<PendingProduct>& group) {
    for (const PendingProduct& p : group)
      for (int i = 0; i < 2; ++i)
        if (p.low[i] < high && low < p.high[i]) return true;
    return false;
  };
  for (*warp = 0; *warp < sm90.warps.size(); ++*warp) {
    const WarpProducts& products = sm90.warps[*warp];
    if (reads(products.open)) return true;
    for (const std::vector<PendingProduct>& group : products.groups)
      if (reads(group)) return true;
  }
  return false;
}

void set_registers(unsigned count, Site site) {
  if (count < 24 || count > 256 || count % 8 != 0)
    fail("setmaxnreg at " + place(site) + ": " + std::to_string(count) +
         " is no multiple of 8 from 24 to 256");
  warp_collective(
      "setmaxnreg", 0xFFFFFFFFu, &count,
      [](Fiber* lanes, uint32_t) {
        state().used = true;
        products_of(lanes[0]).registers = *static_cast<const unsigned*>(lanes[0].argument);
        unsigned sum = 0;
        for (const WarpProducts& warp : state().warps) sum += warp.registers * kWarpSize;
        if (sum > 65536)
          fail("setmaxnreg: the warps together ask for " + std::to_string(sum) +
               " of 65536 registers");
      },
      site);
}

}  // namespace emu
