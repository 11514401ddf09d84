#include "conv_problem.h"

#include <sstream>
#include <stdexcept>

namespace fastconv {

ConvProblem make_conv_problem(const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                              const std::vector<int64_t>& stride,
                              const std::vector<int64_t>& padding,
                              const std::vector<int64_t>& dilation, int64_t groups) {
  const auto fail = [](const auto&... parts) {
    std::ostringstream text;
    text << "ConvProblem: ";
    (text << ... << parts);
    throw std::invalid_argument(text.str());
  };
  const size_t rank = x.size() - 2;
  if (x.size() < 3 || x.size() > 5 || w.size() != x.size())
    fail("expected input and weight of 3 to 5 dimensions, got ", x.size(), " and ", w.size());
  if (stride.size() != rank || padding.size() != rank || dilation.size() != rank)
    fail("stride, padding and dilation need ", rank, " entries");
  if (groups < 1 || x[1] != w[1] * groups || w[0] % groups != 0)
    fail("input has C=", x[1], " channels, weight has K=", w[0], " filters of ", w[1],
         " channels, groups=", groups);
  ConvProblem p{};
  p.rank = static_cast<int>(rank);
  p.N = x[0];
  p.C = x[1];
  p.K = w[0];
  p.groups = groups;
  for (int axis = 0; axis < 3; ++axis) {
    const int i = axis - (3 - p.rank);
    p.in[axis] = i < 0 ? 1 : x[2 + i];
    p.filter[axis] = i < 0 ? 1 : w[2 + i];
    p.stride[axis] = i < 0 ? 1 : stride[i];
    p.padding[axis] = i < 0 ? 0 : padding[i];
    p.dilation[axis] = i < 0 ? 1 : dilation[i];
    if (p.stride[axis] < 1 || p.dilation[axis] < 1 || p.filter[axis] < 1 || p.padding[axis] < 0)
      fail("stride, dilation and kernel must be positive and padding non-negative, got stride ",
           p.stride[axis], ", dilation ", p.dilation[axis], ", kernel ", p.filter[axis],
           ", padding ", p.padding[axis]);
    const int64_t padded = p.in[axis] + 2 * p.padding[axis];
    if (padded < p.dilation[axis] * (p.filter[axis] - 1) + 1)
      fail("kernel ", p.filter[axis], " (dilation ", p.dilation[axis],
           ") is larger than the padded input ", padded);
    p.out[axis] = conv_out_extent(p.in[axis], p.filter[axis], p.padding[axis], p.stride[axis],
                                  p.dilation[axis]);
  }
  return p;
}

}  // namespace fastconv
