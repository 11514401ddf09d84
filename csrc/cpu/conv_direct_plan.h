// Making the direct convolution's plan: which kernel, which tiles, where everything lies in the
// workspace. Pure arithmetic; the tables are filled once the workspace exists.
#pragma once
#include "conv_direct.h"

namespace fastconv::cpu {

// What of the operands' strides decides the kernel.
struct DirectLayout {
  bool in_pixel;   // the channels of the staged input are adjacent in memory
  bool out_pixel;  // and those of the output (wgrad: of dy)
};

// dgrad has one class per residue (modulo the stride) of the input coordinates that some tap
// reaches; fprop and wgrad have one.
int64_t direct_classes(const ConvProblem& p, Direction direction);
// Whether the classes leave out some of dx, which is then 0.
bool direct_leaves_zeros(const ConvProblem& p, Direction direction);

// The plan of one class; false when the class has no outputs. Pointers are null.
bool plan_direct(const ConvProblem& p, DType dtype, Direction direction, int64_t klass,
                 DirectLayout layout, int threads, int vec_bytes, DirectPlan* g);

int64_t direct_workspace(const DirectPlan& g, int threads);
// Estimated seconds (conv_direct_cost.cpp).
double direct_cost(const DirectPlan& g, int threads, int vec_bytes);

void bind_direct(const ConvProblem& p, int64_t klass, void* workspace, DirectPlan* g);

}  // namespace fastconv::cpu
