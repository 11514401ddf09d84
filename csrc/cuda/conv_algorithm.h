// What every CUDA convolution algorithm offers: a table of kernel instances, each a fixed choice of
// direction, dtype, layout and template parameters. No PyTorch and no CUDA headers here: the op
// registration, the emulation and any C++ user read the same tables and call the same launchers.
#pragma once
#include <cstdint>
#include <string>

#include "../common/conv_problem.h"
#include "../common/epilogue.h"

namespace fastconv::cuda {

// How fp32 operands are multiplied, least accurate last: each of these serves whoever allows one
// behind it. TF32 has 11 significant bits; with three products of the parts of operands that are
// split in two an error is within about twice that of fp32. Kernels of other dtypes are kIeee.
enum class Products : int { kIeee = 0, kTf32x3 = 1, kTf32 = 2 };

// Of x, w and y together: all three are dense in it. kNCHW: [N,C,D,H,W], [K,C/g,T,R,S],
// [N,K,O,P,Q]; kNHWC: [N,D,H,W,C], [K,T,R,S,C/g], [N,O,P,Q,K].
enum class Layout : int { kNCHW = 0, kNHWC = 1 };

// What a launcher needs to know of the GPU: nothing is asked of the driver on the way of a call.
struct Device {
  int capability;  // 10 * major + minor: 80, 90
  int sm_count;
};

// fprop reads x, w, bias and writes y; dgrad reads y (= dy), w and writes x (= dx);
// wgrad reads x, y (= dy) and writes w (= dw). Base pointers are aligned to the element only.
struct ConvCall {
  ConvProblem problem;
  void *x, *w, *y;
  const void* bias;   // K elements of the dtype, or null; fprop only
  Epilogue epilogue;  // fprop only; its residual is aligned to the element only, too
  // Statistics of y as it is stored, [K] each in float (fp64: double), or both null; fprop of an
  // instance that has stats_workspace, and then without anything in the epilogue.
  void *mean, *m2;  // m2: the sum of squares about the mean
  void* workspace;  // 256-byte aligned, as many bytes as the instance's workspace() says
  Device device;
  void* stream;  // cudaStream_t; its device is current

  // From one pixel of y (kNHWC) or one image (kNCHW) to the next, in channels.
  int64_t y_channels() const { return epilogue.y_channels > 0 ? epilogue.y_channels : problem.K; }
};

struct ConvInstance {
  // <direction>_<dtype>_<layout>_<mechanism and tile>, unique within its algorithm, e.g.
  // "fprop_f32_nchw_smem_k8_q32"; the catalogue, the budgets and the self-test speak of it.
  const char* name;
  Direction direction;
  DType dtype;
  Layout layout;
  Products products;
  // Empty when the problem can run, else the reason why not, in one sentence with the values.
  std::string (*applicable)(const ConvProblem&);
  // Bytes of scratch, all of it.
  int64_t (*workspace)(const ConvProblem&, const Device&);
  // Estimated seconds on the device, launch included.
  double (*cost)(const ConvProblem&, const Device&);
  // Launches on the stream; returns the cudaError_t. Never synchronises, allocates or asks the
  // driver. Nothing in the problem is zero-sized.
  int (*launch)(const ConvCall&);
  // Bytes of scratch where the launch forms y's statistics, too; null: it cannot.
  int64_t (*stats_workspace)(const ConvProblem&, const Device&) = nullptr;
  // The only compute capability (10 * major + minor) that its code is for; 0: all.
  int capability = 0;

  bool runs_on(const Device& device) const {
    return capability == 0 || capability == device.capability;
  }
};

struct ConvAlgorithm {
  const char* name;  // as in the CPU's registry where it is the same method
  const ConvInstance* instances;
  int size;
};

extern const ConvAlgorithm conv_depthwise, conv_direct, conv_direct_plain, conv_im2col, conv_tma;
extern const ConvAlgorithm conv_winograd_f2x2_3x3, conv_winograd_f4x4_3x3;

// The registry, in order of preference at equal cost.
struct AlgorithmList {
  const ConvAlgorithm* const* data;
  int size;
};
FC_API AlgorithmList conv_algorithms();
FC_API const ConvAlgorithm* find_conv_algorithm(const char* name);  // null when unknown

// Why its code cannot run on the device; empty when it can.
FC_API std::string capability_refusal(const ConvInstance&, const Device&);

// The cheapest instance that runs the problem, or null; then `reason` (if given) says why not.
// `products`: the least accurate that the caller allows.
FC_API const ConvInstance* choose_instance(const ConvAlgorithm&, const ConvProblem&, Direction,
                                           DType, Layout, Products, const Device&,
                                           std::string* reason);

}  // namespace fastconv::cuda
