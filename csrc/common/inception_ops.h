// GoogLeNet's inception module on the stable ABI: geometry, dtypes and new results. A backend
// computes what is left; the CPU runs the module's convolutions one by one and has no such op.
//
//   struct Backend {
//     // `algo`: an instance, or empty for the cheapest. `on`: the tensor whose device runs it.
//     static void run(const char* op, const InceptionCall&, const std::string& algo,
//                     const Tensor& on);
//   };
#pragma once
#include <string>
#include <tuple>

#include "epilogue.h"
#include "inception_call.h"
#include "torch_tensors.h"

namespace fastconv {

template <class Backend>
struct InceptionOps {
  // (y, reductions), both in the format of x.
  static std::tuple<Tensor, Tensor> fprop(const Tensor& x, const Tensor& joined,
                                          const Tensor& joined_bias, const Tensor& w3,
                                          const Tensor& b3, const Tensor& w5, const Tensor& b5,
                                          const Tensor& wp, const Tensor& bp, int64_t activation,
                                          double slope, std::string algo) {
    constexpr const char* op = "inception_fprop";
    STD_TORCH_CHECK(activation >= 0 && activation < kActivations, op, ": unknown activation ",
                    activation);
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, op,
                    ": expected an input of 4 dimensions, none of them 0");
    const bool channels_last = is_channels_last(x);
    InceptionCall c{};
    c.N = x.size(0), c.C = x.size(1), c.H = x.size(2), c.W = x.size(3);
    c.channels_last = channels_last;
    c.dtype = dtype_of(x, op);
    c.activation = static_cast<Activation>(activation);
    c.slope = slope;
    // Of the branches that reduce first, the source's channels; of the others, x's.
    filter(op, "the 3x3's weight", x, w3, b3, -1, &c.R3, &c.K3, &c.extent3);
    filter(op, "the 5x5's weight", x, w5, b5, -1, &c.R5, &c.K5, &c.extent5);
    int64_t channels, rows, one;
    filter(op, "the projection's weight", x, wp, bp, c.C, &channels, &c.KP, &one);
    filter(op, "the joined weight", x, joined, joined_bias, c.C, &channels, &rows, &one);
    c.K1 = rows - c.R3 - c.R5;
    STD_TORCH_CHECK(c.K1 > 0, op, ": the joined weight has ", rows, " filters, the reductions are ",
                    c.R3 + c.R5, " of them");

    const Tensor operands[] = {dense(x, channels_last), dense(joined, channels_last),
                               contiguous(joined_bias), dense(w3, channels_last),
                               contiguous(b3),          dense(w5, channels_last),
                               contiguous(b5),          dense(wp, channels_last),
                               contiguous(bp)};
    const void** const into[] = {&c.x,  &c.joined, &c.joined_bias, &c.w3, &c.b3,
                                 &c.w5, &c.b5,     &c.wp,          &c.bp};
    for (int i = 0; i < 9; ++i) *into[i] = operands[i].const_data_ptr();
    Tensor y = empty_dense(x, {c.N, c.outputs(), c.H, c.W}, channels_last);
    Tensor reductions = empty_dense(x, {c.N, c.R3 + c.R5, c.H, c.W}, channels_last);
    c.y = y.mutable_data_ptr();
    c.reductions = reductions.mutable_data_ptr();
    Backend::run(op, c, algo, x);
    return {y, reductions};
  }

 private:
  // `dense` is for tensors with channels and pixels.
  static Tensor contiguous(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
  // want: the channels that the weight must have, or -1. An extent of 1 is asked for with `want`.
  static void filter(const char* op, const char* name, const Tensor& x, const Tensor& w,
                     const Tensor& b, int64_t want, int64_t* channels, int64_t* filters,
                     int64_t* extent) {
    STD_TORCH_CHECK(w.dim() == 4 && w.numel() > 0 && w.size(2) == w.size(3) && w.size(2) % 2 == 1,
                    op, ": ", name, " must be (K, C, R, R) with odd R");
    *filters = w.size(0), *channels = w.size(1), *extent = w.size(2);
    STD_TORCH_CHECK(want < 0 || (*channels == want && *extent == 1), op, ": ", name,
                    " must be 1x1 over ", want, " channels");
    STD_TORCH_CHECK(b.dim() == 1 && b.size(0) == *filters, op, ": the bias of ", name,
                    " must have ", *filters, " elements");
    STD_TORCH_CHECK(w.scalar_type() == x.scalar_type() && b.scalar_type() == x.scalar_type(), op,
                    ": input and ", name, " or its bias differ in dtype");
    STD_TORCH_CHECK(on_one_device(w, x) && on_one_device(b, x), op, ": ", name,
                    " or its bias is on another device than the input");
  }
  static bool on_one_device(const Tensor& a, const Tensor& b) {
    int32_t types[2] = {0, 0};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(a.get(), &types[0]));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(b.get(), &types[1]));
    return types[0] == types[1] && a.get_device_index() == b.get_device_index();
  }
};

#define FC_DEFINE_INCEPTION_OPS(m)                                                          \
  m.def(                                                                                    \
      "inception_fprop(Tensor x, Tensor joined, Tensor joined_bias, Tensor w3, Tensor b3, " \
      "Tensor w5, Tensor b5, Tensor wp, Tensor bp, int activation, float slope, str algo) " \
      "-> (Tensor, Tensor)")

// Registers the ops for one dispatch key, inside STABLE_TORCH_LIBRARY_IMPL.
#define FC_IMPL_INCEPTION_OPS(m, Backend) \
  m.impl("inception_fprop", TORCH_BOX(&fastconv::InceptionOps<Backend>::fprop))

}  // namespace fastconv
