// What the CUDA kernels of the inception module offer: one table of instances, each a fixed choice
// of dtype, layout and template parameters, as conv_algorithm.h has them for convolutions.
#pragma once
#include <string>

#include "../common/inception_call.h"
#include "conv_algorithm.h"

namespace fastconv::cuda {

struct InceptionInstance {
  // <dtype or tf32>_<layout>_<mechanism and tile>, unique.
  const char* name;
  DType dtype;
  Layout layout;
  bool tf32;
  // Empty when the call can run, else the reason why not, in one sentence with the values. Pointers
  // that are null count as aligned.
  std::string (*applicable)(const InceptionCall&);
  double (*cost)(const InceptionCall&, const Device&);  // estimated seconds
  // Two launches on the stream; returns the cudaError_t. Never synchronises, allocates or asks the
  // driver.
  int (*launch)(const InceptionCall&, void* stream);
};

struct InceptionInstanceList {
  const InceptionInstance* data;
  int size;
};
FC_API InceptionInstanceList inception_instances();

// The cheapest instance that runs the call, or null; then `reason` (if given) says why not. `name`:
// that instance alone, unless it is empty. `tf32`: whether the caller allows TF32 instances.
FC_API const InceptionInstance* choose_inception_instance(const InceptionCall&, bool tf32,
                                                          const std::string& name, const Device&,
                                                          std::string* reason);

}  // namespace fastconv::cuda
