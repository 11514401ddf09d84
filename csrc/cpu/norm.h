// Passes of batch normalisation with activation on the CPU (common/norm_call.h has the formulas):
// the plan that norm.cpp makes and norm_isa.cpp follows.
//
// A line is a run of neighbouring elements: of one channel's pixels in [N,K,size] (one scale for
// the line), or one pixel's channels in [N,size,K] (a vector of scales). Every pass streams through
// lines; 16-bit storage passes through a short buffer of fp32.
//
// Reductions are two-stage. Blocks of about kNormBlock elements give partial results, which are
// merged in order; the blocks follow from the shape alone, so the bits do not depend on threads.
// A block stays in the first or second cache level: its mean comes first, then the squares about
// that mean (and their first moment, which corrects the mean's own rounding), so that a mean far
// from zero costs no digits. Blocks are merged by Chan, Golub and LeVeque, "Updating formulae and a
// pairwise algorithm for computing sample variances", 1979.
#pragma once
#include "../common/norm_call.h"
#include "epilogue.h"
#include "isa.h"

namespace fastconv::cpu {

// [kNormCoefs][K]: what follows from a channel's statistics and parameters.
enum : int { kNormMean = 0, kNormScale, kNormBias, kNormSlope, kNormOffset, kNormCoefs };
//   pre = (y - mean) * scale + bias
//   dy = scale * g - (y - mean) * slope - offset

struct NormPlan {
  DType dtype;
  Epilogue epilogue;
  bool channels_last;  // lines run across the channels
  bool affine;         // coefs are used
  bool centred;        // dgrad: with the sums
  int64_t K, lines, length;
  // Line i of y is at (i / image_lines) * y_image + (i % image_lines) * length, of z likewise; the
  // other tensors are dense.
  int64_t image_lines, y_image, z_image;
  int64_t parts, part;  // elementwise passes: tasks per line, and elements of each
  // Reductions, in lines of one channel ([N,K,size]) or of all.
  int64_t block_lines, block_part, line_parts, blocks;
  int64_t tasks;

  const void *y, *dz;
  void *z, *dy, *dresidual;
  const void* coefs;   // [kNormCoefs][coef_pitch] of acc_t
  int64_t coef_pitch;  // K rounded up to whole vectors
  double* partial;     // [2][blocks][K]

  FC_HOST_DEVICE int64_t y_line(int64_t i) const {
    return i / image_lines * y_image + i % image_lines * length;
  }
  FC_HOST_DEVICE int64_t z_line(int64_t i) const {
    return i / image_lines * z_image + i % image_lines * length;
  }
};

constexpr int64_t kNormBlock = 4096;       // [N,K,size]: elements of a block, 16 KiB in fp32
constexpr int64_t kNormLastBlock = 32768;  // [N,size,K]: of all channels, 128 KiB
constexpr int64_t kNormBlockLines = 512;   // and at most so many, which are added one by one
constexpr int64_t kNormSlotVectors = 4;    // of K elements: a thread's sums while a block passes

// Tasks [begin, end) of a plan; slot: kNormSlotVectors * coef_pitch of acc_t.
struct NormKernels {
  void (*fprop)(const NormPlan&, int64_t begin, int64_t end);
  void (*dgrad)(const NormPlan&, int64_t begin, int64_t end);
  void (*stats)(const NormPlan&, int64_t begin, int64_t end, void* slot);
  void (*sums)(const NormPlan&, int64_t begin, int64_t end, void* slot);
};

// Bytes of workspace of a pass; call.workspace holds them when norm_run is called.
int64_t norm_workspace(NormPass pass, const NormCall& call);
void norm_run(NormPass pass, const NormCall& call);

// The second stage for the blocks that a convolution left: mean and m2 of [K] statistics.
void merge_moments(const Moments& moments, int64_t blocks, DType dtype, void* mean, void* m2,
                   int threads);

}  // namespace fastconv::cpu
