// Table of im2col, and what the host computes for it: limits, split of wgrad's reduction, costs.
#include "conv_im2col.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "device_rates.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kIndexLimit = int64_t{1} << 31;
constexpr int64_t kExtentLimit = int64_t{1} << 29;  // sums of two stay clear of Coordinate::NOTHING

int64_t tiles(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

// The matrix product of one group (of dgrad: of the largest parity class), and how often it is
// done.
struct GemmSize {
  int64_t pixels, channels;  // gemm_m and gemm_n in NHWC, the reverse in NCHW
  double gemm_k;             // of dgrad: the classes' average
  int64_t products;          // groups times classes
};

GemmSize gather_size(const Im2colShape& s, const ConvProblem& p) {
  if (s.direction == Direction::kFprop)
    return {p.N * p.out_size(), p.filters_per_group(),
            double(p.channels_per_group()) * double(p.filter_size()), p.groups};
  int64_t pixels = p.N, classes = 1;
  for (int axis = 0; axis < 3; ++axis) {
    pixels *= tiles(p.in[axis], p.stride[axis]);
    classes *= std::min(p.stride[axis], p.in[axis]);
  }
  return {pixels, p.channels_per_group(),
          double(p.filters_per_group()) * double(p.filter_size()) / double(classes),
          p.groups * classes};
}

// Ranges of at least kLeastSplitTiles, no more partial sums than kMostPartialBytes. A function of
// the problem and the SM count alone.
constexpr int64_t kLeastSplitTiles = 8;
constexpr int64_t kMostWaves = 8;  // blocks per SM, where the tiles of dw alone are fewer
constexpr int64_t kMostPartialBytes = int64_t{128} << 20;
constexpr int64_t kMostSplitPixels = int64_t{1} << 30;  // 32-bit indices within a range

constexpr int64_t kOverheadTiles = 2;  // of gemm_k: filling the ring, epilogue

double full_rate(const Im2colShape& s, const DeviceRates& rates) {
  return s.math == GemmMath::kFma      ? rates.fma_flops
         : s.math == GemmMath::kTf32   ? rates.tensor_tf32_flops
         : s.math == GemmMath::kTf32x3 ? rates.tensor_tf32_flops / 3
                                       : rates.tensor_16_flops;
}

// Fraction of the peak that a full SM reaches: element-wise gathers cost issue slots, small tiles
// shared-memory reads. Not measured on a GPU.
double efficiency(const Im2colShape& s) {
  const bool fma = s.math == GemmMath::kFma;
  double share = fma ? kFmaShare : kMmaShare;
  if (s.block_m * s.block_n < 128 * 64) share *= 0.7;
  if (s.math == GemmMath::kTf32x3) share *= 0.85;  // splitting, sums outside
  if (s.vec_data == 1) share *= fma ? 0.8 : 0.5;
  if (s.vec_other == 1) share *= fma ? 0.9 : 0.8;
  return share;
}

int64_t weight_elements(const ConvProblem& p) {
  return p.K * p.channels_per_group() * p.filter_size();
}

int64_t gather_blocks(const Im2colShape& s, const ConvProblem& p) {
  const GemmSize size = gather_size(s, p);
  return size.products * tiles(size.pixels, s.nhwc() ? s.block_m : s.block_n) *
         tiles(size.channels, s.nhwc() ? s.block_n : s.block_m);
}

// Splitting stops well below the tiles of dw alone where there are many.
int64_t most_wgrad_blocks(const Im2colShape& s, const ConvProblem& p) {
  const int64_t tiles_of_dw = p.groups * tiles(p.filters_per_group(), s.block_m) *
                              tiles(p.channels_per_group() * p.filter_size(), s.block_n);
  return tiles_of_dw * tiles(p.N * p.out_size(), kMostSplitPixels) + (1 << 16);
}

// Images that a run of `pixels` can touch.
int64_t images_touched(const ConvProblem& p, int64_t pixels, int64_t per_image) {
  return std::min(p.N, pixels / std::max<int64_t>(per_image, 1) + 2);
}

std::string too_large(const char* what, int64_t value, int64_t limit) {
  return std::string(what) + " is " + std::to_string(value) + ", the kernel's limit is " +
         std::to_string(limit);
}

}  // namespace

std::string im2col_refusal(const Im2colShape& s, const ConvProblem& p) {
  const auto multiple = [&](const char* what, int64_t extent, int vec) {
    return extent % vec == 0 ? std::string()
                             : std::string(what) + "=" + std::to_string(extent) +
                                   " is not a multiple of " + std::to_string(vec);
  };
  const bool fprop = s.direction == Direction::kFprop, dgrad = s.direction == Direction::kDgrad;
  if (s.nhwc() && s.vec_data > 1) {
    std::string why = multiple("C/groups", p.channels_per_group(), s.vec_data);
    if (why.empty() && !fprop) why = multiple("K/groups", p.filters_per_group(), s.vec_data);
    if (!why.empty()) return why;
  } else if (s.vec_other > 1) {
    const std::string why =
        multiple("C/groups * kernel size", p.channels_per_group() * p.filter_size(), s.vec_other);
    if (!why.empty()) return why;
  } else if (s.vec_data > 1) {
    const std::string why = multiple("the output image's size", p.out_size(), s.vec_data);
    if (!why.empty()) return why;
  }
  if (s.tap_table && p.filter_size() > kMaskTaps)
    return too_large("the kernel's size", p.filter_size(), kMaskTaps);
  int64_t x_image = p.C, y_image = p.K;  // elements, the padding of x included
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t padded = p.in[axis] + 2 * p.padding[axis];
    const int64_t largest = std::max({padded, p.stride[axis], p.dilation[axis]});
    if (largest >= kExtentLimit) return too_large("an extent", largest, kExtentLimit - 1);
    x_image *= padded;
    y_image *= p.out[axis] + 2 * (dgrad ? p.filter[axis] : 0);
    if (std::max(x_image, y_image) >= kIndexLimit)
      return too_large("the elements of one image", std::max(x_image, y_image), kIndexLimit - 1);
  }
  int64_t per_image = p.out_size();  // of the smallest class
  int64_t run = s.direction == Direction::kWgrad ? s.block_k : s.nhwc() ? s.block_m : s.block_n;
  if (dgrad) {
    per_image = 1;
    for (int axis = 0; axis < 3; ++axis)
      per_image *= std::max<int64_t>(p.in[axis] / p.stride[axis], 1);
  }
  const int64_t index_limit = std::min(kIndexLimit, (int64_t{1} << 32) / s.scalar_bytes);
  const int64_t spanned = std::max(x_image, y_image) * images_touched(p, run, per_image);
  if (spanned >= index_limit)
    return too_large("the elements of the images that one tile reads", spanned, index_limit - 1);
  const int64_t weights = weight_elements(p) / p.groups;
  const int64_t row = p.channels_per_group() * p.filter_size() * 256;
  if (std::max(weights, row) >= index_limit)
    return too_large("the elements of one group's weight", std::max(weights, row), index_limit - 1);
  const int64_t blocks =
      s.direction == Direction::kWgrad ? most_wgrad_blocks(s, p) : gather_blocks(s, p);
  if (blocks >= kIndexLimit) return too_large("the number of tiles", blocks, kIndexLimit - 1);
  return {};
}

Im2colSplit im2col_split(const Im2colShape& s, const ConvProblem& p, const Device& device) {
  Im2colSplit split{};
  split.m_tiles = tiles(p.filters_per_group(), s.block_m);
  split.n_tiles = tiles(p.channels_per_group() * p.filter_size(), s.block_n);
  const int64_t blocks = p.groups * split.m_tiles * split.n_tiles;
  const int64_t k_tiles = tiles(p.N * p.out_size(), s.block_k);
  const int64_t most = std::max<int64_t>(
      std::min(k_tiles / kLeastSplitTiles, kMostPartialBytes / (4 * weight_elements(p))), 1);
  // The cut that ends first, of those that fill the SMs some quarters of a time. One block too many
  // makes all SMs wait for it, so that the best is often above the least that fills them once.
  const DeviceRates rates = device_rates({90, device.sm_count});  // whatever the capability
  const double tile_s = 2.0 * s.block_m * s.block_n * s.block_k * device.sm_count /
                        (full_rate(s, rates) * efficiency(s));
  const double partial_s = 8.0 * double(weight_elements(p)) / rates.bytes_per_s;
  double least = std::numeric_limits<double>::infinity();
  int64_t splits = 1;
  for (int64_t quarter = 0; quarter <= 4 * kMostWaves; ++quarter) {
    const int64_t n = std::clamp<int64_t>(quarter * device.sm_count / (4 * blocks), 1, most);
    const double rounds = double(tiles(blocks * n, device.sm_count));
    const double seconds = rounds * double(tiles(k_tiles, n) + kOverheadTiles) * tile_s +
                           (n > 1 ? double(n) * partial_s + rates.launch_s : 0);
    if (seconds < least) least = seconds, splits = n;
  }
  splits = std::max(splits, tiles(k_tiles * s.block_k, kMostSplitPixels));
  split.split_tiles = tiles(k_tiles, splits);
  split.splits = tiles(k_tiles, split.split_tiles);
  return split;
}

int64_t im2col_workspace(const Im2colShape& s, const ConvProblem& p, const Device& device) {
  if (s.direction != Direction::kWgrad) return 0;
  const int64_t splits = im2col_split(s, p, device).splits;
  return splits > 1 ? splits * weight_elements(p) * 4 : 0;
}

// Of the smallest tile: alignment of the bases decides which it is.
int64_t im2col_stats_workspace(const ConvProblem& p, const Device&) {
  return p.K * tiles(p.N * p.out_size(), 64) * static_cast<int64_t>(sizeof(TileMoment));
}

double im2col_cost(const Im2colShape& s, const ConvProblem& p, const Device& device) {
  const DeviceRates rates = device_rates(device);
  double blocks, k_tiles, reduction = 0;
  if (s.direction == Direction::kWgrad) {
    const Im2colSplit split = im2col_split(s, p, device);
    blocks = double(p.groups) * double(split.m_tiles * split.n_tiles) * double(split.splits);
    k_tiles = double(split.split_tiles);
    if (split.splits > 1)  // partial sums, written and read
      reduction = rates.launch_s + 2.0 * double(im2col_workspace(s, p, device)) / rates.bytes_per_s;
  } else {
    blocks = double(gather_blocks(s, p));
    k_tiles = std::ceil(gather_size(s, p).gemm_k / s.block_k);
  }
  k_tiles += kOverheadTiles;
  const double rounds = std::ceil(blocks / device.sm_count);
  const double block_flops = 2.0 * s.block_m * s.block_n * s.block_k * k_tiles;
  const double multiply =
      rounds * block_flops * device.sm_count / (full_rate(s, rates) * efficiency(s));
  const double l2_bytes = blocks * k_tiles * 64.0 * (s.block_m + s.block_n);
  const double elements = double(p.N) * double(p.C) * double(p.in_size()) +
                          double(weight_elements(p)) +
                          double(p.N) * double(p.K) * double(p.out_size());
  const double bytes = s.scalar_bytes * elements;
  const double memory = std::max(bytes / rates.bytes_per_s, l2_bytes / rates.l2_bytes_per_s);
  return rates.launch_s + std::max(multiply, memory) + reduction;
}

bool im2col_aligned(const Im2colShape& s, const ConvCall& call) {
  const bool wgrad = s.direction == Direction::kWgrad;
  const void* data = s.direction == Direction::kFprop ? call.x : call.y;
  const void* other = wgrad ? call.x : call.w;
  const auto aligned = [&](const void* base, int vec) {
    return vec == 1 || reinterpret_cast<uintptr_t>(base) % 16 == 0;
  };
  return aligned(data, s.vec_data) && aligned(other, s.vec_other);
}

ConvGatherParams im2col_gather_params(const Im2colShape& s, const ConvCall& call, int64_t* blocks) {
  const ConvProblem& c = call.problem;
  const bool dgrad = s.direction == Direction::kDgrad;
  ConvGatherParams p{};
  p.src = dgrad ? call.y : call.x;
  p.dst = dgrad ? call.x : call.y;
  p.w = call.w;
  p.bias = dgrad ? nullptr : call.bias;
  p.images = c.N;
  p.src_channels = static_cast<int>(dgrad ? c.filters_per_group() : c.channels_per_group());
  p.dst_channels = static_cast<int>(dgrad ? c.channels_per_group() : c.filters_per_group());
  p.groups = static_cast<int>(c.groups);
  bool dense_rows = true;  // the pixels of a class are neighbours in dst
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t stride = c.stride[axis], dilation = c.dilation[axis];
    p.src_extent[axis] = static_cast<int>(dgrad ? c.out[axis] : c.in[axis]);
    p.dst_extent[axis] = static_cast<int>(dgrad ? c.in[axis] : c.out[axis]);
    p.filter[axis] = static_cast<int>(c.filter[axis]);
    p.stride[axis] = static_cast<int>(stride);
    p.padding[axis] = static_cast<int>(c.padding[axis]);
    p.dilation[axis] = static_cast<int>(dilation);
    const int64_t period = dgrad ? stride / std::gcd(stride, dilation) : 1;
    p.tap_period[axis] = static_cast<int>(period);
    p.tap_step[axis] = static_cast<int>(dgrad ? -(period * dilation / stride) : dilation);
    p.most_pixels[axis] = static_cast<int>(dgrad ? tiles(c.in[axis], stride) : c.out[axis]);
    p.most_taps[axis] = static_cast<int>(tiles(c.filter[axis], period));
    if (dgrad && stride > 1) dense_rows = false;
  }
  const GemmSize size = gather_size(s, c);
  const auto divisor = [](int64_t d) {  // what is empty is never divided by
    return FastDivmod(static_cast<uint32_t>(std::max<int64_t>(d, 1)));
  };
  p.pixel_tiles = divisor(tiles(size.pixels, s.nhwc() ? s.block_m : s.block_n));
  p.channel_tiles = divisor(tiles(size.channels, s.nhwc() ? s.block_n : s.block_m));
  p.group_count = divisor(c.groups);
  *blocks = gather_blocks(s, c);
  const int64_t dst_size = dgrad ? c.in_size() : c.out_size();
  const auto vec4 = [&](const void* base, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(base) % (4 * s.scalar_bytes) == 0 &&
           (s.nhwc() ? p.dst_channels % 4 == 0 && pitch % 4 == 0 : dense_rows && dst_size % 4 == 0);
  };
  p.dst_pitch = static_cast<int>(dgrad ? c.C : call.y_channels());
  p.vec4 = vec4(p.dst, p.dst_pitch);
  if (!dgrad) {
    p.epilogue = store_epilogue<float>(call.epilogue);
    p.residual_vec4 = vec4(call.epilogue.residual, c.K);
    if (call.mean != nullptr) p.partial = static_cast<TileMoment*>(call.workspace);
  }
  p.channels = divisor(p.src_channels);
  for (int axis = 0; axis < 3; ++axis) {
    p.class_count[axis] = divisor(dgrad ? std::min(c.stride[axis], c.in[axis]) : 1);
    p.stride_by[axis] = divisor(p.stride[axis]);
    p.period_by[axis] = divisor(p.tap_period[axis]);
  }
  for (int variant = 0; variant < 8; ++variant) {
    int64_t n[3], t[3];
    for (int axis = 0; axis < 3; ++axis) {
      const int less = variant & (4 >> axis) ? 0 : 1;
      n[axis] = p.most_pixels[axis] - less;
      t[axis] = p.most_taps[axis] - less;
    }
    p.image[variant] = divisor(n[0] * n[1] * n[2]);
    p.taps[variant] = divisor(t[0] * t[1] * t[2]);
    if (variant < 4) {
      p.plane[variant] = divisor(n[1] * n[2]);
      p.tap_plane[variant] = divisor(t[1] * t[2]);
    }
    if (variant < 2) {
      p.row[variant] = divisor(n[2]);
      p.tap_row[variant] = divisor(t[2]);
    }
  }
  return p;
}

namespace {

template <class Config>
std::string refusal(const ConvProblem& p) {
  return im2col_refusal(Config::shape, p);
}
template <class Config>
int64_t workspace(const ConvProblem& p, const Device& device) {
  return im2col_workspace(Config::shape, p, device);
}
template <class Config>
double cost(const ConvProblem& p, const Device& device) {
  return im2col_cost(Config::shape, p, device);
}

#define FC_IM2COL_ROW(name, dtype, products, config)                                       \
  {name,                                                                                   \
   FC_IM2COL_CONFIG(config)::shape.direction,                                              \
   dtype,                                                                                  \
   FC_IM2COL_CONFIG(config)::shape.layout,                                                 \
   products,                                                                               \
   refusal<FC_IM2COL_CONFIG(config)>,                                                      \
   workspace<FC_IM2COL_CONFIG(config)>,                                                    \
   cost<FC_IM2COL_CONFIG(config)>,                                                         \
   launch_conv_im2col<FC_IM2COL_CONFIG(config)>,                                           \
   FC_IM2COL_CONFIG(config)::shape.direction == Direction::kFprop ? im2col_stats_workspace \
                                                                  : nullptr},

const ConvInstance kInstances[] = {
    FC_IM2COL_INSTANCES(FC_IM2COL_ROW, Direction::kFprop, "fprop")
        FC_IM2COL_INSTANCES(FC_IM2COL_ROW, Direction::kDgrad, "dgrad")
            FC_IM2COL_INSTANCES(FC_IM2COL_ROW, Direction::kWgrad, "wgrad")};

}  // namespace

extern const ConvAlgorithm conv_im2col = {"im2col", kInstances,
                                          sizeof(kInstances) / sizeof(kInstances[0])};

}  // namespace fastconv::cuda
