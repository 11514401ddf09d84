// Launchers of the passes of batch normalisation with activation (NormCall). No PyTorch and no CUDA
// headers here.
#pragma once
#include "../common/norm_call.h"
#include "conv_algorithm.h"

namespace fastconv::cuda {

// Bytes of scratch, 256-byte aligned, for NormCall::workspace.
FC_API int64_t norm_workspace(NormPass, const NormCall&);

// Launches on the stream; returns the cudaError_t. y, dz, residual and the results are aligned to
// the element only.
FC_API int launch_norm(NormPass, const NormCall&, void* stream);

}  // namespace fastconv::cuda
