#include "build_info.h"

namespace fastconv {

extern const BuildInfo build_info{FC_BUILD_TORCH, FC_BUILD_ID, FC_BUILD_COMPILER, FC_BUILD_CUDA,
                                  FC_BUILD_ARCHS};

}  // namespace fastconv
