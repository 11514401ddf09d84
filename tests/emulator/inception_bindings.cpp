// The inception module's part of the emulation's Python module: a call that runs one instance on
// plain bytes. tests/emulated_inception.py puts tensors around it.
#include "inception_bindings.h"

#include <map>

#include "cuda/inception_algorithm.h"
#include "cuda/launch.h"
#include "python_buffers.h"

namespace py = pybind11;
using namespace fastconv;
using emu::InputBuffer;
using emu::OutputBuffer;

namespace {

const cuda::InceptionInstance& instance_of(const std::string& name) {
  const cuda::InceptionInstanceList all = cuda::inception_instances();
  for (int i = 0; i < all.size; ++i)
    if (name == all.data[i].name) return all.data[i];
  throw std::out_of_range("no inception instance " + name);
}

InceptionCall call_of(const cuda::InceptionInstance& instance, const InceptionSizes& sizes) {
  return inception_of(sizes, instance.dtype, instance.layout == cuda::Layout::kNHWC);
}

// Operands by the names of InceptionCall's members. Returns (y, reductions, statistics).
py::tuple run_inception(const std::string& name, const InceptionSizes& sizes,
                        const std::map<std::string, py::object>& operands, int activation,
                        double slope, const emu::RunOptions& options) {
  const cuda::InceptionInstance& instance = instance_of(name);
  InceptionCall c = call_of(instance, sizes);
  c.activation = static_cast<Activation>(activation);
  c.slope = slope;
  const size_t element = c.dtype == DType::kFloat32 ? 4 : 2;
  const std::map<std::string, const void**> reads = {
      {"x", &c.x},   {"joined", &c.joined}, {"joined_bias", &c.joined_bias},
      {"w3", &c.w3}, {"b3", &c.b3},         {"w5", &c.w5},
      {"b5", &c.b5}, {"wp", &c.wp},         {"bp", &c.bp}};
  std::map<std::string, InputBuffer> inputs;
  for (const auto& [operand, content] : operands)
    *reads.at(operand) =
        inputs.try_emplace(operand, operand.c_str(), content, element, options.placement)
            .first->second.data();
  const size_t alignment = options.placement == emu::Placement::kOffset ? element : 16;
  const auto pixels = static_cast<size_t>(c.pixels());
  const OutputBuffer y("y", pixels * static_cast<size_t>(c.outputs()) * element, alignment, element,
                       options.placement, false);
  const OutputBuffer reductions("reductions", pixels * static_cast<size_t>(c.R3 + c.R5) * element,
                                alignment, element, options.placement, false);
  c.y = y.data();
  c.reductions = reductions.data();
  const std::string refused = instance.applicable(c);
  if (!refused.empty()) throw py::value_error(refused);

  emu::Statistics statistics;
  int error = 0;
  std::string wrong =
      emu::guarded_run(options, &statistics, [&] { error = instance.launch(c, nullptr); });
  if (wrong.empty() && error != 0)
    wrong = "the launcher returned " + std::to_string(error) + ": " + cuda::error_text(error);
  for (const auto& [operand, buffer] : inputs)
    if (wrong.empty()) wrong = buffer.changed();
  if (wrong.empty()) wrong = y.damage();
  if (wrong.empty()) wrong = reductions.damage();
  if (!wrong.empty()) throw std::runtime_error(name + ": " + wrong);
  return py::make_tuple(y.read(), reductions.read(), statistics);
}

}  // namespace

void bind_inception(py::module_& m) {
  m.def("inception_instances", [] {
    py::list all;
    const cuda::InceptionInstanceList list = cuda::inception_instances();
    for (int i = 0; i < list.size; ++i) {
      const cuda::InceptionInstance& each = list.data[i];
      all.append(py::make_tuple(each.name, each.dtype, each.layout, each.products));
    }
    return all;
  });
  m.def("inception_refusal", [](const std::string& name, const InceptionSizes& sizes) {
    const cuda::InceptionInstance& instance = instance_of(name);
    return instance.applicable(call_of(instance, sizes));
  });
  m.def("inception_cost", [](const std::string& name, const InceptionSizes& sizes) {
    const cuda::InceptionInstance& instance = instance_of(name);
    return instance.cost(call_of(instance, sizes), cuda::Device{90, 132});
  });
  m.def(
      "run_inception",
      [](const std::string& name, const InceptionSizes& sizes,
         const std::map<std::string, py::object>& operands, int activation, double slope,
         const py::kwargs& options) {
        return run_inception(name, sizes, operands, activation, slope, emu::run_options(options));
      },
      py::arg("name"), py::arg("sizes"), py::arg("operands"), py::arg("activation") = 0,
      py::arg("slope") = 0.0);
}
