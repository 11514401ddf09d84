// PoolProblem in Python, for the package's module and the emulation's: one entry per spatial axis
// in the lists; an adaptive axis has stride 0, and as its kernel the longest window.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "pool_problem.h"

namespace fastconv {

inline PoolProblem pool_problem(int64_t batch, int64_t channels, const std::vector<int64_t>& in,
                                const std::vector<int64_t>& out, const std::vector<int64_t>& kernel,
                                const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation) {
  PoolProblem p{};
  p.rank = static_cast<int>(in.size());
  p.N = batch, p.C = channels;
  for (const auto* list : {&out, &kernel, &stride, &padding, &dilation})
    if (p.rank < 1 || p.rank > 3 || list->size() != in.size())
      throw std::invalid_argument("expected one entry per spatial axis (1 to 3) in every list");
  const auto fill = [&](int64_t(&axes)[3], const std::vector<int64_t>& list, int64_t unused) {
    for (int axis = 0; axis < 3; ++axis)
      axes[axis] = axis < 3 - p.rank ? unused : list[static_cast<size_t>(axis + p.rank - 3)];
  };
  fill(p.in, in, 1), fill(p.out, out, 1), fill(p.kernel, kernel, 1), fill(p.stride, stride, 1);
  fill(p.padding, padding, 0), fill(p.dilation, dilation, 1);
  return p;
}

inline void bind_pool_problem(pybind11::module_& m) {
  namespace py = pybind11;
  py::enum_<PoolKind>(m, "PoolKind", py::module_local())
      .value("max", PoolKind::kMax)
      .value("sum", PoolKind::kSum)
      .value("lp", PoolKind::kLp)
      .value("sample", PoolKind::kSample)
      .value("expectation", PoolKind::kExpectation);
  py::class_<PoolProblem>(m, "PoolProblem", py::module_local())
      .def(py::init(&pool_problem), py::arg("batch"), py::arg("channels"), py::arg("input"),
           py::arg("output"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("dilation"));
}

}  // namespace fastconv
