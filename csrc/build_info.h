// What this build was made with and from. In a file of its own, so that a change of the sources,
// which changes `id`, does not compile the bindings anew.
#pragma once

namespace fastconv {

struct BuildInfo {
  const char* torch;
  const char* id;  // hash of the native sources
  const char* compiler;
  const char* cuda;   // nvcc's release, empty without CUDA kernels
  const char* archs;  // e.g. "sm_80,sm_90a,compute_90a"
};
extern const BuildInfo build_info;

}  // namespace fastconv
