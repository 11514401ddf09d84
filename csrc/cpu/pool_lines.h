// What one instruction set offers to pooling: operations on lines, runs of acc_t in memory. Rows of
// the input, of the output and of gradients become lines, whatever the storage type, the layout and
// the rank; the passes that order them (pool_forward.cpp, pool_backward.cpp) are compiled once.
#pragma once
#include "pool.h"

namespace fastconv::cpu {

enum class Reduce : int {
  kMax,      // the largest; of ties the first stays, of NaNs the last
  kMaxTap,   // and the tap it came from
  kMaxLine,  // and what `index` says there, plus row_tap
  kSum,
  kSquares,  // the sum of the squares
  kDraw,     // one element by chance (pool_sample.h), and its tap
  kMean,     // sum of weight^2 / sum of weight
  kSend,     // the sum of those whose `index` is the tap
};
constexpr int kReduces = 8;

// An index beside an element of A.
template <class A>
struct Lane;
template <>
struct Lane<float> {
  using type = int32_t;
};
template <>
struct Lane<double> {
  using type = int64_t;
};
template <class A>
using lane_t = typename Lane<A>::type;

// Element i of the result is reduced from row[r][base + offset[k] + i], r < rows, k < taps, in this
// order; the tap of (r, k) is row_tap[r] + tap[k]. With `times` > 1 that is done again and again,
// base a `step` further, the results (and what is drawn) an `out_step` further.
template <class A>
struct Reads {
  const A* const* row;
  const lane_t<A>* const* index;  // kMaxLine, kSend: beside every row
  const lane_t<A>* row_tap;
  int64_t rows;
  int64_t base;
  const int64_t* offset;
  const lane_t<A>* tap;
  int64_t taps;
  // The first tap inside the input: first_tap, plus first[i] where taps before it are read too.
  const lane_t<A>* first;
  lane_t<A> first_tap;
  const A* uniform;  // kDraw: the number drawn for element i
  int64_t times, step, out_step;
  bool more;      // sums and maxima: carry on from what the result holds
  int64_t ahead;  // sums and maxima: what lies so much further is asked for, unless it is 0
};

// Windows of two or three taps along a row, one or two columns apart, take two steps: `across`
// every row, once, into a line of outputs; `down` the lines of a window's rows.
enum class Step : int {
  kMax,       // as Reduce::kMax where there is no NaN; otherwise one is reported
  kMaxTap,    // as Reduce::kMaxTap, likewise
  kMaxExact,  // as Reduce::kMaxTap, with NaNs
  kSum,       // over the window's size
  kLp,        // of power 2: the root of the sum of squares over the window's size
};
constexpr int kSteps = 5;
constexpr int kStepShapes = 4;
constexpr int step_shape(int64_t taps, int64_t stride) {
  return static_cast<int>(2 * (stride - 1) + taps - 2);
}

// Output q reads x[q * stride - padding + s].
struct RowEdge {
  int64_t output, first, last;  // the taps that lie in the row
};
struct RowWindows {
  int64_t padding;
  int64_t first, last;  // outputs that vectors may read every tap of
  // Of a padding of 1, whether the first `lanes` outputs are within `last` but for tap 0 of output
  // 0, which makes `first` 0; and whether output `last` is the row's last and lacks its last tap
  // alone.
  bool left, right;
  int64_t edges;
  const RowEdge* edge;  // outputs that have to be made one by one
};
template <class A>
struct WindowLines {
  const A* const* line;
  const lane_t<A>* const* taps;  // the tap across, beside every line
  const lane_t<A>* row_tap;      // what is added to it
  int64_t rows;
  A rows_size;  // a window's size is rows_size * size[i]; its reciprocal for kLp
  const A* size;
};

// Both steps at once, for windows of 2x2 taps 2 apart or of 3x3 taps 1 or 2 apart: rows of outputs
// of one plane. The outputs but the first have all of the taps before them, and those but the last
// all of those behind, of every row.
template <class A>
struct PlaneRows {
  // The rows of x that the windows have, in order; each may be read `padding` elements before its
  // first and `missing` behind its last.
  const A* const* row;
  int64_t padding;        // taps of output 0 before the row, 0 or 1
  int64_t missing;        // taps of the last output behind it
  int64_t rows, columns;  // of outputs; no fewer columns than lanes
  A* y;                   // [rows, columns]
  A* kept;                // scratch: a line for each row that two windows share
  const A* rows_size;     // as in WindowLines, of every row of outputs
  const A* size;
};
// The same windows of a row of pixels [columns, channels], all of whose taps lie in the input.
template <class A>
struct PixelRows {
  const A* const* row;        // of a window, from the first one's first pixel
  int64_t columns, channels;  // no fewer channels than lanes
  A* y;
  A size;  // what sums are divided by
};
constexpr int kPlaneShapes = 3;
// -1: none.
constexpr int plane_shape(int64_t taps, int64_t stride) {
  return taps == 2 && stride == 2   ? 0
         : taps == 3 && stride == 1 ? 1
         : taps == 3 && stride == 2 ? 2
                                    : -1;
}

// Lines may start at any element. n: how many elements are read and written; reduce alone handles a
// whole vector where n is less than one, so its lines need that much room.
template <class A>
struct PoolLines {
  int64_t lanes;
  void (*reduce[kReduces])(const Reads<A>&, A* out, lane_t<A>* taps, int64_t n);
  // Element i from row[r][2 i + k], k < taps, of every row: windows of stride 2 where rows lie,
  // their tap (r, k) being row_tap[r] + k; `first` and `first_tap` as above, nothing else is looked
  // at. Rows are read to 2 (n + lanes) + taps. For kMax, kMaxTap, kSum and kSquares.
  void (*slide[kReduces])(const Reads<A>&, A* out, lane_t<A>* taps, int64_t n);
  // Of `planes` planes, `step` apart: one number from row[r][0, n) of every row, whose taps count
  // from row_tap[r]. For kMaxTap (taps may be null), kSum and kSquares; the others are null.
  void (*strip[kReduces])(const A* const* row, const lane_t<A>* row_tap, int64_t rows, int64_t n,
                          int64_t step, int64_t planes, A* out, lane_t<A>* taps);
  // Vectors are read and written whole if last - first < lanes, so lines need that much room. Bit
  // by bit `seen` [lanes] becomes other than 0 where a maximum meets a NaN.
  void (*across[kSteps][kStepShapes])(const A* x, const RowWindows&, A* line, lane_t<A>* taps,
                                      lane_t<A>* seen);
  // For kMax, kSum and kLp; the others are null.
  void (*plane[kSteps][kPlaneShapes])(const PlaneRows<A>&, lane_t<A>* seen);
  void (*pixels[kSteps][kPlaneShapes])(const PixelRows<A>&, lane_t<A>* seen);
  // Element i < n of every line; by the number of lines, 2, 3, or any (then at [2]). bytes: the
  // taps, unless it is null.
  void (*down[kSteps][3])(const WindowLines<A>&, A* out, uint8_t* bytes, int64_t n);
  // dx[i], i < n, from what kSend would add up of the lines: windows of 2 or 3 taps, 2 apart, by
  // their padding. Lines are read from -1 to n / 2 + lanes + 1.
  void (*send[2][2])(const Reads<A>&, A* dx, int64_t n);
  void (*load)(DType, const void* x, A* out, int64_t n);
  void (*store)(DType, const A* x, void* y, int64_t n);
  // even[i] = x[2i], odd[i] = x[2i + 1], and back.
  void (*split)(const A* x, A* even, A* odd, int64_t n);
  void (*join)(const A* even, const A* odd, A* x, int64_t n);
  // x^power
  void (*raise)(const A* x, double power, A* out, int64_t n);
  // (x scale / (rows count))^(1 / power)
  void (*finish)(const A* x, const A* count, A rows, A scale, double power, A* out, int64_t n);
  // dy y^(1 - power) scale / (rows count), 0 where y is 0; without y: dy / (rows count)
  void (*share)(const A* dy, const A* y, const A* count, A rows, A scale, double power, A* out,
                int64_t n);
  // dx *= x^(power - 1)
  void (*chain)(const A* x, double power, A* dx, int64_t n);
  void (*fill)(A value, A* out, int64_t n);
  void (*widen)(const uint8_t* bytes, lane_t<A>* out, int64_t n);
  void (*narrow)(const lane_t<A>* x, uint8_t* bytes, int64_t n);
  // What outputs first, first + step, ... draw under the seed.
  void (*uniform)(uint64_t seed, uint64_t first, uint64_t step, A* out, int64_t n);
};

}  // namespace fastconv::cpu
