// TMA's im2col mode: which pixels of which images a box takes. The model here is of its own, not
// that of the emulation.
#include <stdexcept>

#include "copy_box.h"

namespace assumptions::im2col {
using namespace fastconv::cuda;

namespace {

// x [N, D, H, W, C]; spatial arrays and coordinates innermost first: W, H, D.
struct Walk {
  int rank, n, extent[3], channels;  // rank: 4 or 5
  int lower[3], upper[3], step[3];
  int at[5], offset[3];  // {c, w, h[, d], n}
  int pixels;
  int second[5];  // of a cluster: where the second block's box starts
};

// What else might be meant.
enum Twist {
  kAsRead,
  kCornersOutermostFirst,
  kOffsetsOutermostFirst,
  kBackToStart,
  kStepFromZero,
  kLastPixelExclusive,
  kStaysInLastImage,
  kOutsideIsNearest,
  kChannelsGoOn
};

std::vector<uint16_t> box_of(const Walk& p, const std::vector<uint16_t>& x, const int* at,
                             Twist twist) {
  const int axes = p.rank - 2;
  int lower[3], upper[3], offset[3], pixel[3];
  for (int i = 0; i < axes; ++i) {
    const bool corners = twist == kCornersOutermostFirst, offsets = twist == kOffsetsOutermostFirst;
    lower[i] = p.lower[corners ? axes - 1 - i : i];
    upper[i] = p.upper[corners ? axes - 1 - i : i];
    offset[i] = p.offset[offsets ? axes - 1 - i : i];
    pixel[i] = at[i + 1];
  }
  int image = at[p.rank - 1];
  std::vector<uint16_t> box(static_cast<size_t>(p.pixels) * 64, 0);
  for (int row = 0; row < p.pixels; ++row) {
    size_t from = static_cast<size_t>(twist == kStaysInLastImage && image >= p.n ? p.n - 1 : image);
    bool inside = twist == kStaysInLastImage || image < p.n;
    for (int i = axes - 1; i >= 0; --i) {
      int place = pixel[i] + offset[i];
      if (twist == kOutsideIsNearest)
        place = place < 0 ? 0 : place >= p.extent[i] ? p.extent[i] - 1 : place;
      inside = inside && place >= 0 && place < p.extent[i];
      from = from * p.extent[i] + (inside ? place : 0);
    }
    for (int c = 0; c < 64; ++c)
      if (const size_t at_c = from * p.channels + at[0] + c;
          inside && at_c < x.size() && (twist == kChannelsGoOn || at[0] + c < p.channels))
        box[row * 64 + c] = x[at_c];
    int i = 0;
    for (; i < axes; ++i) {
      pixel[i] += p.step[i];
      if (pixel[i] < p.extent[i] + upper[i] - (twist == kLastPixelExclusive)) break;
      pixel[i] = twist == kBackToStart    ? at[i + 1]
                 : twist == kStepFromZero ? pixel[i] - (p.extent[i] + upper[i] - lower[i])
                                          : lower[i];
    }
    if (i == axes) ++image;
  }
  return box;
}

struct Named {
  const char* name;
  Twist twist;
};

Outcome run(const Walk& p, int cluster, const std::vector<Named>& readings) {
  size_t count = static_cast<size_t>(p.n) * p.channels;
  for (int i = 0; i < p.rank - 2; ++i) count *= p.extent[i];
  const std::vector<uint16_t> x = numbered(count);
  const Memory memory(x);
  TensorAxes axes{memory.as<void>(), fastconv::DType::kBFloat16, p.rank, {}, {}};
  axes.extent[0] = p.channels;
  axes.stride[0] = 2;
  uint64_t stride = 2u * p.channels;
  uint32_t step[3];
  for (int i = 1; i < p.rank; ++i) {
    axes.extent[i] = i == p.rank - 1 ? p.n : p.extent[i - 1];
    axes.stride[i] = stride;
    stride *= axes.extent[i];
    if (i < p.rank - 1) step[i - 1] = p.step[i - 1];
  }
  TensorMap map;
  if (encode_im2col_map(&map, axes, p.lower, p.upper, step, 64, p.pixels) != cudaSuccess)
    return {false, "the driver refuses the tensor map"};
  BoxCopy copy{
      p.rank == 4 ? CopyKind::kIm2col4 : CopyKind::kIm2col5, cluster, p.pixels * 128, {}, {}};
  for (int i = 0; i < 5; ++i) copy.at[0][i] = p.at[i], copy.at[1][i] = p.second[i];
  for (int i = 0; i < 3; ++i) copy.offset[i] = p.offset[i];
  const Words got = copied_boxes(map, copy, cluster);
  std::vector<Reading> expected;
  for (const Named& reading : readings) {
    Words one = swizzled_rows(box_of(p, x, p.at, reading.twist));
    if (cluster > 1) {
      const Words other = swizzled_rows(box_of(p, x, p.second, reading.twist));
      one.insert(one.end(), other.begin(), other.end());
      const Words both = one;
      one.insert(one.end(), both.begin(), both.end());
    }
    expected.push_back({reading.name, std::move(one)});
  }
  return judge(got, expected);
}

// Images of 7 x 6, whose corners are alike in both axes: only one check has to know their order.
constexpr Walk kPlane{4, 3, {6, 7}, 64, {-1, -1}, {-1, -1}, {1, 1}, {0, 1, 2, 0}, {0, 0}, 16, {}};

}  // namespace

std::vector<Check> checks() {
  const char* const who = "every fprop and dgrad of tma, wgrad's pixels";
  return {
      {"im2col_corners", "corners of the pixel box are given W first, and the last pixel counts",
       who, 90,
       [] {
         Walk p = kPlane;
         p.lower[0] = p.upper[0] = -2;
         p.offset[0] = 2, p.offset[1] = 1;
         return run(p, 1,
                    {{"W first, inclusive", kAsRead},
                     {"W last", kCornersOutermostFirst},
                     {"exclusive", kLastPixelExclusive}});
       }},
      {"im2col_offsets", "offsets of the filter's tap are given W first, and move every pixel", who,
       90,
       [] {
         Walk p = kPlane;
         p.offset[0] = 4, p.offset[1] = 1;
         return run(p, 1, {{"W first", kAsRead}, {"W last", kOffsetsOutermostFirst}});
       }},
      {"im2col_walk", "pixels go on along W, H and the images, from the lower corner again", who,
       90,
       [] {
         Walk p = kPlane;
         p.offset[0] = 1, p.offset[1] = 2;
         p.at[1] = 2, p.at[2] = 4, p.pixels = 80;
         return run(p, 1, {{"from the lower corner", kAsRead}, {"from the start", kBackToStart}});
       }},
      {"im2col_steps", "the walk's steps are of pixels, and start at the lower corner in every row",
       "strided fprop of tma", 90,
       [] {
         Walk p = kPlane;
         p.step[0] = 4, p.step[1] = 2;
         p.at[1] = 3, p.at[2] = 1, p.offset[0] = 1;
         return run(p, 1,
                    {{"from the lower corner", kAsRead},
                     {"with what was left", kStepFromZero},
                     {"from the start", kBackToStart}});
       }},
      {"im2col_outside", "taps outside of the image read as zero, before the first place too", who,
       90,
       [] {
         Walk p = kPlane;
         p.at[1] = -1, p.at[2] = -1, p.pixels = 48;
         return run(p, 1, {{"zero", kAsRead}, {"the nearest pixel", kOutsideIsNearest}});
       }},
      {"im2col_past_the_end", "pixels behind the last image read as zero, and count as bytes", who,
       90,
       [] {
         Walk p = kPlane;
         p.offset[0] = 2, p.offset[1] = 1;
         p.at[2] = 3, p.at[3] = 2, p.pixels = 64;
         return run(p, 1, {{"zero", kAsRead}, {"the last image again", kStaysInLastImage}});
       }},
      {"im2col_channels", "channels behind the last one read as zero", who, 90,
       [] {
         Walk p = kPlane;
         p.channels = 72, p.at[0] = 64, p.offset[0] = 1, p.offset[1] = 1;
         return run(p, 1, {{"zero", kAsRead}, {"the next pixel's", kChannelsGoOn}});
       }},
      {"im2col_volume", "the same in five dimensions: corners, offsets and coordinates W, H, D",
       "tma of rank 3", 90,
       [] {
         const Walk p{5,           2,           {5, 4, 3}, 64,
                      {-1, -2, 0}, {-1, 0, -1}, {1, 2, 1}, {0, 1, 0, 0, 0},
                      {2, 1, 0},   96,          {}};
         return run(p, 1,
                    {{"W first", kAsRead},
                     {"corners W last", kCornersOutermostFirst},
                     {"offsets W last", kOffsetsOutermostFirst}});
       }},
      {"im2col_multicast", "a multicast walks alike, to the same place of every block in the mask",
       "tma of clusters", 90,
       [] {
         Walk p = kPlane;
         p.offset[0] = 1, p.offset[1] = 2;
         p.at[1] = 2, p.at[2] = 4, p.pixels = 40;
         const int second[5] = {0, 3, 0, 2, 0};
         for (int i = 0; i < 5; ++i) p.second[i] = second[i];
         return run(p, 2,
                    {{"both blocks have both boxes", kAsRead}, {"from the start", kBackToStart}});
       }},
  };
}

}  // namespace assumptions::im2col
