#include "tensor_map.h"

namespace fastconv::cuda {

#if defined(FC_EMULATE)

int encode_tile_map(TensorMap* map, const TensorAxes& a, const uint32_t* box) {
  const bool tf32 = a.dtype == DType::kFloat32 && !a.exact;
  const char* why = emu::encode_tile(map, static_cast<unsigned>(a.stride[0]), tf32, a.rank, a.base,
                                     a.extent, a.stride, box, emu::Swizzle::k128);
  return why == nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

int encode_im2col_map(TensorMap* map, const TensorAxes& a, const int* lower, const int* upper,
                      const uint32_t* step, uint32_t channels, uint32_t pixels) {
  const bool tf32 = a.dtype == DType::kFloat32 && !a.exact;
  const char* why =
      emu::encode_im2col(map, static_cast<unsigned>(a.stride[0]), tf32, a.rank, a.base, a.extent,
                         a.stride, lower, upper, channels, pixels, step, emu::Swizzle::k128);
  return why == nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

#else

namespace {

// The driver's function, or null where the driver is older than 12.0.
template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Function>(found)
             : nullptr;
}

CUtensorMapDataType element_type(const TensorAxes& a) {
  return a.dtype == DType::kFloat16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
         : a.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
         : a.exact                     ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                       : CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
}

int error_of(CUresult result) {
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

int encode_tile_map(TensorMap* map, const TensorAxes& a, const uint32_t* box) {
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t extent[5], stride[5];
  cuuint32_t step[5];
  for (int i = 0; i < a.rank; ++i) {
    extent[i] = a.extent[i];
    step[i] = 1;
    if (i > 0) stride[i - 1] = a.stride[i];
  }
  return error_of(encode(map, element_type(a), a.rank, a.base, extent, stride, box, step,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

int encode_im2col_map(TensorMap* map, const TensorAxes& a, const int* lower, const int* upper,
                      const uint32_t* step, uint32_t channels, uint32_t pixels) {
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t extent[5], stride[5];
  cuuint32_t steps[5];
  for (int i = 0; i < a.rank; ++i) {
    extent[i] = a.extent[i];
    steps[i] = i > 0 && i < a.rank - 1 ? step[i - 1] : 1;
    if (i > 0) stride[i - 1] = a.stride[i];
  }
  return error_of(encode(map, element_type(a), a.rank, a.base, extent, stride, lower, upper,
                         channels, pixels, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                         CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

#endif

}  // namespace fastconv::cuda
