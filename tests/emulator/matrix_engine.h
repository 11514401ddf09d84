// ldmatrix and mma.sync as the PTX ISA defines their fragments (section "Matrix multiply-accumulate
// operation using mma instruction"). All 32 lanes take part; the last one to arrive computes.
//
// Products are exact and added to the accumulator one by one in fp32, gemm_k ascending. The order
// inside a tensor core is not documented; tolerances leave room for it.
#pragma once
#include <cstdint>

#include "scheduler.h"

namespace emu {

// registers: `count` (1, 2, 4) per lane; row: 16 bytes in shared memory, aligned to 16.
void load_matrix(uint32_t* registers, int count, bool transposed, const void* row, Site site);

enum class Operand { kHalf, kBfloat16, kTf32 };

// d += a * b: m16n8k16 for the 16-bit types, m16n8k8 for TF32. a: 4 registers, b: 2, d: 4.
void multiply_accumulate(Operand type, float* d, const uint32_t* a, const uint32_t* b, Site site);

// cvt.rna.tf32.f32: 10 bits of mantissa, ties away from zero.
uint32_t round_to_tf32(float value);

}  // namespace emu
