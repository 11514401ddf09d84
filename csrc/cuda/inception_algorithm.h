// What the CUDA kernels of the inception module offer: one table of instances, each a fixed choice
// of dtype, layout and template parameters, as conv_algorithm.h has them for convolutions.
#pragma once
#include <string>

#include "../common/inception_call.h"
#include "conv_algorithm.h"

namespace fastconv::cuda {

struct InceptionInstance {
  // <dtype or products>_<layout>_<mechanism and tile>, unique.
  const char* name;
  DType dtype;
  Layout layout;
  Products products;
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
// that instance alone, unless it is empty. `products`: the least accurate that the caller allows.
FC_API const InceptionInstance* choose_inception_instance(const InceptionCall&, Products products,
                                                          const std::string& name, const Device&,
                                                          std::string* reason);

}  // namespace fastconv::cuda
