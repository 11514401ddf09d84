// Planning of the im2col algorithm: from a problem (and, to run it, its tensors) to matrix
// products.
#pragma once
#include "conv_algorithm.h"
#include "conv_im2col.h"

namespace fastconv::cpu {

// Scratch of one thread for every plan of the problem, whatever the strides of its tensors.
Im2colScratch im2col_scratch(const ConvProblem&, DType, Direction, const Im2colKernels&);

// dgrad has one product per residue class of the input coordinates modulo the stride, the other
// directions one. Classes that no input element belongs to have zero tasks.
int64_t im2col_classes(const ConvProblem&, Direction);

// wgrad: into how many parts the sum over pixels is split; a property of the problem alone, so
// that the result does not depend on the number of threads.
int64_t im2col_slices(const ConvProblem&, DType, Direction);

// Bytes that the weights of all classes take when packed beforehand.
int64_t im2col_packed_bytes(const ConvProblem&, DType, Direction, const Im2colKernels&);

// Bytes of Im2colGemm::packed that this product wants, 0 for none.
int64_t im2col_packed_bytes(const Im2colGemm&, DType, const Im2colKernels&);

Im2colGemm im2col_plan(const ConvCall&, int64_t index, const Im2colKernels&, int threads);

}  // namespace fastconv::cpu
