// What every CPU convolution algorithm offers: the same verbs, one algorithm per file. No PyTorch
// headers here: the op registration, the catalogue and any C++ user call the same functions.
#pragma once
#include <cstdint>
#include <string>

#include "epilogue.h"

namespace fastconv::cpu {

// A strided view; strides in elements, in the order n, c, d, h, w (weights: k, c, t, r, s).
// Strides may be 0 (expanded) or in any order; an axis of extent 1 may have any stride.
struct TensorRef {
  void* data;
  int64_t stride[5];
};

// fprop reads x, w, bias and writes y; dgrad reads y (= dy), w and writes x (= dx);
// wgrad reads x, y (= dy) and writes w (= dw). Written tensors are dense (N,C,... or channels-last
// order) but are addressed through their strides all the same.
struct ConvCall {
  ConvProblem problem;
  DType dtype;
  Direction direction;
  TensorRef x, w, y;
  const void* bias;  // K elements of dtype, contiguous, or null; fprop only
  void* workspace;   // 64-byte aligned, workspace() bytes
  int threads;       // the count that workspace() was asked for; run() uses no more scratch slots
  // fprop only. y may be a slice of a larger tensor.
  CpuEpilogue epilogue;
  // fprop only, of a dense y. moment_blocks() reads K alone.
  Moments moments;
};

struct ConvAlgorithm {
  const char* name;
  // Empty when the problem can run, else the reason why not, in one sentence with the values.
  std::string (*applicable)(const ConvProblem&, DType, Direction);
  // Bytes of scratch, all of it: run() allocates nothing that grows with the problem.
  int64_t (*workspace)(const ConvProblem&, DType, Direction, int threads);
  // Estimated seconds on `threads` threads of the active instruction set.
  double (*cost)(const ConvProblem&, DType, Direction, int threads);
  // The problem is applicable and nothing in it is zero-sized (the caller handles empty tensors,
  // an empty reduction and a zero-sized output).
  void (*run)(const ConvCall&);
  // Into how many blocks of pixels run() cuts y for its moments; 0: a pass of its own is faster.
  int64_t (*moment_blocks)(const ConvCall&);
};

extern const ConvAlgorithm conv_direct;
extern const ConvAlgorithm conv_im2col;
extern const ConvAlgorithm conv_winograd_f2x2_3x3;
extern const ConvAlgorithm conv_winograd_f4x4_3x3;

// The registry, in order of preference at equal cost.
struct AlgorithmList {
  const ConvAlgorithm* const* data;
  int size;
};
FC_API AlgorithmList conv_algorithms();
FC_API const ConvAlgorithm* find_conv_algorithm(const char* name);  // null when unknown

}  // namespace fastconv::cpu
