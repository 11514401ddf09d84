// Geometry of one convolution, ranks 1 to 3, in the field's letters:
//   y[n,k,o,p,q] = sum_{c,t,r,s} x[n, c, o*st-pd+t*dl, ...] * w[k, c, t, r, s]
// Ranks 1 and 2 set the unused leading spatial axes to extent 1, stride 1, padding 0.
// Plain data, passed by value; all extents are 64-bit.
#pragma once
#include <cstdint>
#if !defined(__CUDACC__) && !defined(FC_ISA)
#include <vector>
#endif

#if defined(__CUDACC__)
#define FC_HOST_DEVICE __host__ __device__ __forceinline__
#else
// always_inline, so that a copy compiled for one instruction set can never be the one that the
// linker keeps for another.
#define FC_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Shared between the op library and the Python module; everything else is hidden.
#define FC_API __attribute__((visibility("default")))

namespace fastconv {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum class Direction : int { kFprop = 0, kDgrad = 1, kWgrad = 2 };

struct ConvProblem {
  int rank;             // 1, 2, 3: how many of the spatial axes are the caller's
  int64_t N, C, K;      // batch, input channels, output channels (all groups together)
  int64_t groups;       // C and K are multiples of it
  int64_t in[3];        // D, H, W
  int64_t filter[3];    // T, R, S
  int64_t out[3];       // O, P, Q
  int64_t padding[3];   // zeros added on both sides
  int64_t stride[3];    // > 0
  int64_t dilation[3];  // > 0

  FC_HOST_DEVICE int64_t channels_per_group() const { return C / groups; }
  FC_HOST_DEVICE int64_t filters_per_group() const { return K / groups; }
  FC_HOST_DEVICE int64_t in_size() const { return in[0] * in[1] * in[2]; }
  FC_HOST_DEVICE int64_t out_size() const { return out[0] * out[1] * out[2]; }
  FC_HOST_DEVICE int64_t filter_size() const { return filter[0] * filter[1] * filter[2]; }
  // Multiply-adds, counting those that fall on padding.
  FC_HOST_DEVICE double macs() const {
    return double(N) * double(K) * double(channels_per_group()) * double(filter_size()) *
           double(out_size());
  }
};

// PyTorch's rule; the caller has checked that the dilated filter fits.
FC_HOST_DEVICE int64_t conv_out_extent(int64_t in, int64_t filter, int64_t padding, int64_t stride,
                                       int64_t dilation) {
  return (in + 2 * padding - dilation * (filter - 1) - 1) / stride + 1;
}

#if !defined(__CUDACC__) && !defined(FC_ISA)
// Shapes as PyTorch has them: x [N,C,spatial], w [K,C/groups,spatial], one entry per spatial axis
// in the lists. Throws std::invalid_argument with the values when they do not fit together.
FC_API ConvProblem make_conv_problem(const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                                     const std::vector<int64_t>& stride,
                                     const std::vector<int64_t>& padding,
                                     const std::vector<int64_t>& dilation, int64_t groups);
#endif

}  // namespace fastconv
