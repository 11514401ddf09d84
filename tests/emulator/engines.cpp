// cp.async, ldmatrix, stmatrix and mma.sync (kernel_interface.h says what they promise), with
// fragments as the PTX ISA defines them (section "Matrix multiply-accumulate operation using mma
// instruction"). Products are exact, and so is their sum until it is cut off (tensor_sums.h); what
// a tensor core keeps of it is not documented, and tolerances leave room for it.
#include <cstdio>
#include <string>

#include "access_checks.h"
#include "half_types.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "tensor_sums.h"

namespace emu {

namespace {
std::string name_of(const void* p) {
  char text[96];
  return describe_shared(p, text);
}
}  // namespace

// --- cp.async -----------------------------------------------------------------------------------

void async_copy(void* shared, const void* global, unsigned bytes, bool valid) {
  const auto wrong = [&](const char* why) {
    fail("cp.async of " + std::to_string(bytes) + " bytes to " + name_of(shared) + ": " + why);
  };
  if (!in_shared(shared, bytes)) wrong("outside of the block's shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0)
    wrong("destination not aligned to its size");
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0)
    wrong("source not aligned to its size");
  CopyQueue& queue = current->copies;
  queue.copies.push_back({static_cast<unsigned char*>(shared),
                          static_cast<const unsigned char*>(global), bytes, valid});
  ++queue.open;
  if (valid) note_read(*current, global, bytes);
  note_copy(*current, shared, bytes);
  fill_poison(shared, bytes);
}

void async_commit() {
  CopyQueue& queue = current->copies;
  queue.groups.push_back(queue.open);
  queue.open = 0;
}

void async_wait(unsigned pending) {
  CopyQueue& queue = current->copies;
  if (queue.groups.size() <= pending) return;
  const size_t landing = queue.groups.size() - pending;
  size_t count = 0;
  for (size_t g = 0; g < landing; ++g) count += queue.groups[g];
  for (size_t i = 0; i < count; ++i) {
    const PendingCopy& copy = queue.copies[i];
    if (!is_poison(copy.shared, copy.bytes))
      fail("shared memory at " + name_of(copy.shared) +
           " was written while a cp.async to it was in flight");
    note_landing(*current, copy.shared, copy.bytes);
    if (copy.valid)
      std::memcpy(copy.shared, copy.global, copy.bytes);
    else
      std::memset(copy.shared, 0, copy.bytes);
  }
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + static_cast<ptrdiff_t>(count));
  queue.groups.erase(queue.groups.begin(), queue.groups.begin() + static_cast<ptrdiff_t>(landing));
}

// --- ldmatrix, stmatrix -------------------------------------------------------------------------

namespace {
struct MatrixLoad {
  uint32_t* registers;
  const unsigned char* row;
  int count;
};

// Matrix m is 8 x 8 of 16 bits, its rows where lanes 8m to 8m+7 point. Lane l receives elements
// [l / 4][2 * (l % 4)] and the next one in the row; transposed, of the matrix's transpose.
template <bool kTransposed>
void exchange_matrices(Fiber* lanes, uint32_t) {
  const auto arguments = [&](unsigned lane) -> const MatrixLoad& {
    return *static_cast<const MatrixLoad*>(lanes[lane].argument);
  };
  const int count = arguments(0).count;
  for (int m = 0; m < count; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) std::memcpy(matrix[row], arguments(8 * m + row).row, 16);
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      const unsigned i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
      const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
      arguments(lane).registers[m] = low | high << 16;
    }
  }
}

struct MatrixStore {
  const uint32_t* registers;
  unsigned char* row;
};

void store_matrices(Fiber* lanes, uint32_t) {
  const auto arguments = [&](unsigned lane) -> const MatrixStore& {
    return *static_cast<const MatrixStore*>(lanes[lane].argument);
  };
  for (unsigned m = 0; m < 4; ++m)
    for (unsigned lane = 0; lane < kWarpSize; ++lane)
      std::memcpy(arguments(8 * m + lane / 4).row + lane % 4 * 4, &arguments(lane).registers[m], 4);
}

void check_matrix_row(const char* what, const void* row) {
  if (!in_shared(row, 16))
    fail(std::string(what) + ": row at " + name_of(row) +
         " is outside of the block's shared memory");
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail(std::string(what) + ": row at " + name_of(row) + " is not aligned to 16 bytes");
}
}  // namespace

void load_matrix(uint32_t* registers, int count, bool transposed, const void* row, Site site) {
  const bool used = current->lane < static_cast<unsigned>(8 * count);  // others' rows are not read
  if (used) {
    check_matrix_row("ldmatrix", row);
    note_read(*current, row, 16);
  }
  MatrixLoad mine{registers, static_cast<const unsigned char*>(row), count};
  warp_collective("ldmatrix", 0xFFFFFFFFu, &mine,
                  transposed ? exchange_matrices<true> : exchange_matrices<false>, site);
}

void store_matrix(const uint32_t* registers, void* row, Site site) {
  check_matrix_row("stmatrix", row);
  note_write(*current, row, 16);
  MatrixStore mine{registers, static_cast<unsigned char*>(row)};
  warp_collective("stmatrix", 0xFFFFFFFFu, &mine, store_matrices, site);
}

// --- mma.sync -----------------------------------------------------------------------------------

namespace {
struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

template <Operand kType>
float operand_value(const uint32_t* registers, int element) {
  if constexpr (kType == Operand::kTf32) {
    // The low 13 bits are not looked at.
    return bit_cast<float>(registers[element] & 0xFFFFE000u);
  } else {
    const auto bits = static_cast<uint16_t>(registers[element / 2] >> (element % 2 * 16));
    return kType == Operand::kHalf ? half_to_float(bits) : bfloat16_to_float(bits);
  }
}

// With g = lane / 4 and t = lane % 4, element i of a lane's fragment is
//   16-bit  a[16][16]: row g + 8 * (i / 2 % 2), column 2t + i % 2 + 8 * (i / 4)
//           b[16][8]:  row 2t + i % 2 + 8 * (i / 2), column g
//   TF32    a[16][8]:  row g + 8 * (i % 2), column t + 4 * (i / 2)
//           b[8][8]:   row t + 4 * i, column g
//   both    d[16][8]:  row g + 8 * (i / 2), column 2t + i % 2
template <Operand kType>
void exchange_product(Fiber* lanes, uint32_t) {
  constexpr bool kWide = kType != Operand::kTf32;
  constexpr int kDepth = kWide ? 16 : 8;
  float a[16][kDepth], b[kDepth][8];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const Fragments*>(lanes[lane].argument);
    const unsigned g = lane / 4, t = lane % 4;
    for (int i = 0; i < (kWide ? 8 : 4); ++i) {
      const float value = operand_value<kType>(mine.a, i);
      if constexpr (kWide)
        a[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = value;
      else
        a[g + 8 * (i % 2)][t + 4 * (i / 2)] = value;
    }
    for (int i = 0; i < (kWide ? 4 : 2); ++i) {
      const float value = operand_value<kType>(mine.b, i);
      if constexpr (kWide)
        b[2 * t + i % 2 + 8 * (i / 2)][g] = value;
      else
        b[t + 4 * i][g] = value;
    }
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const Fragments*>(lanes[lane].argument);
    const unsigned g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      double sum = mine.d[i];
      for (int k = 0; k < kDepth; ++k) sum += double(a[g + 8 * (i / 2)][k]) * b[k][2 * t + i % 2];
      mine.d[i] = cut_off(sum);
    }
  }
}
}  // namespace

void multiply_accumulate(Operand type, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Fragments mine{d, a, b};
  const Exchange exchange = type == Operand::kHalf       ? exchange_product<Operand::kHalf>
                            : type == Operand::kBfloat16 ? exchange_product<Operand::kBfloat16>
                                                         : exchange_product<Operand::kTf32>;
  warp_collective("mma.sync", 0xFFFFFFFFu, &mine, exchange, site);
}

uint32_t round_to_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu;
  if ((bits & 0x7F800000u) == 0x7F800000u) return bits;
  return (bits + 0x1000u) & 0xFFFFE000u;
}

}  // namespace emu
