// How the kernels over windows of staged rows lay a problem out, for tests.
#include "rows_bindings.h"

#include <stdexcept>

#include "cuda/conv_rows.h"

namespace py = pybind11;
using namespace fastconv;

void bind_rows(py::module_& m) {
  m.def("rows_plan", [](const std::string& instance, const ConvProblem& problem,
                        const cuda::Device& device, int64_t aligned) {
    const cuda::RowsShape* const shape = cuda::find_rows_shape(instance);
    if (shape == nullptr) throw std::invalid_argument("no such instance: " + instance);
    const cuda::RowsPlan plan = cuda::rows_plan(*shape, problem, device, aligned);
    py::dict found;
    found["tile"] = py::make_tuple(plan.tile[0], plan.tile[1]);
    found["copy"] = static_cast<int>(plan.copy);
    found["lead"] = plan.lead;
    found["shifted"] = plan.shifted;
    return found;
  });
}
