// What the kernels with a resident halo plan for a problem: the model's figures, for tests.
#include "halo_bindings.h"

#include <stdexcept>

#include "cuda/conv_halo.h"

namespace py = pybind11;
using namespace fastconv;

void bind_halo(py::module_& m) {
  m.def("halo_plan",
        [](const std::string& instance, const ConvProblem& problem, const cuda::Device& device) {
          const cuda::HaloShape* const shape = cuda::find_halo_shape(instance);
          if (shape == nullptr) throw std::invalid_argument("no such instance: " + instance);
          const cuda::HaloPlan plan = cuda::halo_plan(*shape, problem, device);
          py::dict found;
          found["tile"] = py::make_tuple(plan.tile[0], plan.tile[1], plan.tile[2]);
          found["parts"] = plan.parts;
          found["blocks"] = plan.blocks;
          found["cluster"] = 1 << plan.cluster_log;
          found["w_bytes"] = plan.w_bytes;
          found["pixel_bytes"] = plan.pixel_bytes;
          found["weight_bytes"] = plan.weight_bytes;
          found["flops"] = plan.flops;
          return found;
        });
}
