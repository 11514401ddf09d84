// Launchers and device facts: raw pointers and a stream, no PyTorch headers, so that the torch
// registration and any other host call the same functions. A stream is passed as void* to keep
// CUDA headers out too.
#pragma once
#include <cstdint>

#include "conv_algorithm.h"

namespace fastconv::cuda {

// Returns the cudaError_t of the launch. n >= 0; the device of `stream` is current.
int launch_probe(const int32_t* x, int32_t* y, int64_t n, void* stream);

const char* error_text(int error);

// Asked of the driver once per device, then remembered. Returns the cudaError_t.
FC_API int describe_device(int index, Device* device);

// E.g. "sm_80,sm_90a,compute_90a".
const char* built_architectures();

}  // namespace fastconv::cuda
