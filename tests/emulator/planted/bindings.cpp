// The Python module of the planted bugs, and of small functions that test the emulation's parts.
#include "planted.h"
#include "python_buffers.h"

namespace py = pybind11;

namespace planted {

namespace {

const std::vector<const ScenarioList*> kBugs = {
    &barriers, &warps, &memory, &copies, &matrices, &launches, &tma_copies, &clusters, &flags};
const std::vector<const ScenarioList*> kSanitized = {&undefined};
const std::vector<const ScenarioList*> kValues = {&values};

std::vector<std::string> names_of(const std::vector<const ScenarioList*>& lists) {
  std::vector<std::string> names;
  for (const ScenarioList* list : lists)
    for (int i = 0; i < list->size; ++i) names.emplace_back(list->data[i].name);
  return names;
}

const Scenario& find_scenario(const std::string& name) {
  for (const std::vector<const ScenarioList*>& lists : {kBugs, kSanitized, kValues})
    for (const ScenarioList* list : lists)
      for (int i = 0; i < list->size; ++i)
        if (list->data[i].name == name) return list->data[i];
  throw std::invalid_argument("no scenario " + name);
}

// Returns (y or the peeked places of it, statistics).
py::tuple run(const std::string& name, bool bug, const py::object& x, size_t outputs,
              const std::optional<emu::Peeks>& peeks, const emu::RunOptions& options) {
  const Scenario& scenario = find_scenario(name);
  const bool sparse = peeks.has_value();
  const emu::InputBuffer in("x", x, 4, options.placement);
  const emu::OutputBuffer out("y", 4 * outputs, 4, 4, options.placement, sparse);
  const emu::OutputBuffer scratch("workspace", 4096, 256, 4, emu::Placement::kEndAligned, false);
  const Arguments arguments{reinterpret_cast<float*>(in.data()),
                            reinterpret_cast<float*>(out.data()),
                            reinterpret_cast<float*>(scratch.data()),
                            static_cast<int64_t>(in.bytes() / 4), static_cast<int64_t>(outputs)};
  emu::Statistics statistics;
  std::string wrong =
      emu::guarded_run(options, &statistics, [&] { scenario.launch(bug, arguments); });
  if (wrong.empty()) wrong = in.changed();
  if (wrong.empty()) wrong = out.damage();
  if (wrong.empty()) wrong = scratch.damage();
  if (!wrong.empty()) throw std::runtime_error(wrong);
  py::object result = out.read(0, sparse ? 0 : 4 * outputs);
  if (sparse) {
    py::list places;
    for (const auto& [offset, bytes] : *peeks) places.append(out.read(offset, bytes));
    result = places;
  }
  return py::make_tuple(result, statistics);
}

template <class To, class From, class Function>
auto elementwise(Function f) {
  return [f](const py::array_t<From, py::array::c_style>& in) {
    py::array_t<To> out(in.size());
    for (py::ssize_t i = 0; i < in.size(); ++i) out.mutable_data()[i] = f(in.data()[i]);
    return out;
  };
}

}  // namespace
}  // namespace planted

PYBIND11_MODULE(FC_MODULE_NAME, m) {
  using namespace planted;
  emu::bind_common(m);
  m.def("scenarios", [] { return names_of(kBugs); });
  // What only the sanitizers see.
  m.def("sanitized_scenarios", [] { return names_of(kSanitized); });
  m.def(
      "run",
      [](const std::string& name, bool bug, const py::object& x, size_t outputs,
         const std::optional<emu::Peeks>& peeks, const py::kwargs& options) {
        return run(name, bug, x, outputs, peeks, emu::run_options(options));
      },
      py::arg("name"), py::arg("bug"), py::arg("x"), py::arg("outputs"),
      py::arg("peeks") = py::none());
  m.def("float_to_half", elementwise<uint16_t, float>(emu::float_to_half));
  m.def("half_to_float", elementwise<float, uint16_t>(emu::half_to_float));
  m.def("float_to_bfloat16", elementwise<uint16_t, float>(emu::float_to_bfloat16));
  m.def("bfloat16_to_float", elementwise<float, uint16_t>(emu::bfloat16_to_float));
  m.def("round_to_tf32", elementwise<uint32_t, float>(emu::round_to_tf32));
}
