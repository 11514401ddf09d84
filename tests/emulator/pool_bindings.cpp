// The pooling part of the emulation's Python module: the registered kernel instances, and a call
// that runs one of them on plain bytes. tests/emulated_pool.py puts tensors around it.
#include "pool_bindings.h"

#include <map>

#include "common/pool_python.h"
#include "cuda/launch.h"
#include "cuda/pool_algorithm.h"
#include "python_buffers.h"

namespace py = pybind11;
using namespace fastconv;
using emu::InputBuffer;
using emu::OutputBuffer;

namespace {

const cuda::PoolInstance& find_instance(const std::string& name) {
  const auto list = cuda::pool_instances();
  for (int i = 0; i < list.size; ++i)
    if (list.data[i]->name == name) return *list.data[i];
  throw std::invalid_argument("no pooling kernel instance " + name);
}

// What a call says beside its operands.
struct Options {
  PoolIndex index_kind;
  bool include_pad;
  int64_t divisor;
  double power;
  bool rescale;
};

PoolCall call_of(cuda::PoolPass pass, PoolKind kind, DType dtype, cuda::Layout layout,
                 const PoolProblem& problem, const Options& o) {
  PoolCall call{};
  call.p = problem;
  call.dtype = dtype;
  call.kind = kind;
  call.index_kind = o.index_kind;
  call.channels_last = layout == cuda::Layout::kNHWC;
  call.backward = pass == cuda::PoolPass::kBackward;
  call.include_pad = o.include_pad, call.divisor = o.divisor;
  call.power = o.power, call.rescale = o.rescale;
  return call;
}
PoolCall call_of(const cuda::PoolInstance& i, const PoolProblem& problem, const Options& o) {
  return call_of(i.pass, i.kind, i.dtype, i.layout, problem, o);
}

// As if every operand lay at `address`.
void place_at(PoolCall& call, uintptr_t address) {
  void* const at = reinterpret_cast<void*>(address);
  call.x = call.y = call.dy = call.result = call.index = at;
  call.seed = static_cast<const uint64_t*>(at);
}

// Operands: x, y, dy, index, seed, whichever the pass reads. Returns (result, index that was
// written or None, statistics); with peeks, only those places of the result, and no index.
py::tuple run_pool(const std::string& name, const PoolProblem& problem, const Options& o,
                   const std::map<std::string, py::object>& operands, const cuda::Device& device,
                   const std::optional<emu::Peeks>& peeks, const emu::RunOptions& options) {
  const cuda::PoolInstance& instance = find_instance(name);
  const cuda::PoolPass pass = instance.pass;
  const bool forward = pass == cuda::PoolPass::kForward;
  const bool to_input = pass == cuda::PoolPass::kBackward || pass == cuda::PoolPass::kUnpool;
  const size_t element = instance.dtype == DType::kFloat64   ? 8
                         : instance.dtype == DType::kFloat32 ? 4
                                                             : 2;
  const size_t index_element = o.index_kind == PoolIndex::kLong ? 8 : 1;
  const auto planes = static_cast<size_t>(problem.N * problem.C);
  const size_t ins = planes * static_cast<size_t>(problem.in_size());
  const size_t outs = planes * static_cast<size_t>(problem.out_size());
  const bool offset = options.placement == emu::Placement::kOffset;
  const bool sparse = peeks.has_value();

  PoolCall call = call_of(instance, problem, o);
  std::map<std::string, InputBuffer> inputs;
  for (const auto& [what, content] : operands) {
    const bool is_index = what == "index", is_seed = what == "seed";
    const size_t each = is_seed ? 8 : is_index ? index_element : element;
    const bool as_input = what == "x" && pass != cuda::PoolPass::kUnpool;
    const size_t wanted = (is_seed ? 1 : as_input ? ins : outs) * each;
    const auto made = inputs.try_emplace(what, what.c_str(), content, each, options.placement);
    const InputBuffer& buffer = made.first->second;
    if (buffer.bytes() != wanted)
      throw std::invalid_argument(name + ": " + what + " has " + std::to_string(buffer.bytes()) +
                                  " bytes, expected " + std::to_string(wanted));
    if (what == "x")
      call.x = buffer.data();
    else if (what == "y")
      call.y = buffer.data();
    else if (what == "dy")
      call.dy = buffer.data();
    else if (is_index)
      call.index = buffer.data();
    else if (is_seed)
      call.seed = reinterpret_cast<const uint64_t*>(buffer.data());
    else
      throw std::invalid_argument(name + ": no operand is called " + what);
  }
  const OutputBuffer result(to_input ? "result" : "y", (to_input ? ins : outs) * element,
                            offset ? element : 16, element, options.placement, sparse);
  call.result = result.data();
  std::optional<OutputBuffer> index;
  if (forward && o.index_kind != PoolIndex::kNone) {
    index.emplace("index", outs * index_element, offset ? index_element : 16, index_element,
                  options.placement, sparse);
    call.index = index->data();
  }
  const std::string refused = instance.applicable(call);
  if (!refused.empty()) throw std::invalid_argument(name + ": " + refused);

  emu::Statistics statistics;
  int error = 0;
  std::string wrong = emu::guarded_run(options, &statistics,
                                       [&] { error = instance.launch(call, device, nullptr); });
  if (wrong.empty() && error != 0)
    wrong = "the launcher returned " + std::to_string(error) + ": " + cuda::error_text(error);
  for (const auto& [what, buffer] : inputs)
    if (wrong.empty()) wrong = buffer.changed();
  if (wrong.empty()) wrong = result.damage();
  if (wrong.empty() && index) wrong = index->damage();
  if (!wrong.empty()) throw std::runtime_error(name + ": " + wrong);

  if (sparse) {
    py::list places;
    for (const auto& [at, size] : *peeks) places.append(result.read(at, size));
    return py::make_tuple(places, py::none(), statistics);
  }
  return py::make_tuple(result.read(), index ? py::object(index->read()) : py::none(), statistics);
}

}  // namespace

void bind_pools(py::module_& m) {
  bind_pool_problem(m);
  py::enum_<cuda::PoolPass>(m, "PoolPass", py::module_local())
      .value("forward", cuda::PoolPass::kForward)
      .value("backward", cuda::PoolPass::kBackward)
      .value("gather", cuda::PoolPass::kGather)
      .value("unpool", cuda::PoolPass::kUnpool);
  py::class_<Options>(m, "PoolOptions", py::module_local())
      .def(py::init([](int index, bool include_pad, int64_t divisor, double power, bool rescale) {
             return Options{static_cast<PoolIndex>(index), include_pad, divisor, power, rescale};
           }),
           py::arg("index") = 0, py::arg("include_pad") = true, py::arg("divisor") = 0,
           py::arg("power") = 1.0, py::arg("rescale") = false);
  using cuda::PoolInstance;
  py::class_<PoolInstance>(m, "PoolInstance", py::module_local())
      .def_property_readonly("name", [](const PoolInstance& i) { return i.name; })
      .def_readonly("pass_", &PoolInstance::pass)
      .def_readonly("kind", &PoolInstance::kind)
      .def_readonly("dtype", &PoolInstance::dtype)
      .def_readonly("layout", &PoolInstance::layout)
      .def("refusal",
           [](const PoolInstance& i, const PoolProblem& p, const Options& o, uintptr_t address) {
             PoolCall call = call_of(i, p, o);
             place_at(call, address);
             return i.applicable(call);
           });
  m.def("pool_instances", [] {
    py::list all;
    const auto list = cuda::pool_instances();
    for (int i = 0; i < list.size; ++i)
      all.append(py::cast(list.data[i], py::return_value_policy::reference));
    return all;
  });
  m.def("choose_pool", [](cuda::PoolPass pass, PoolKind kind, DType dtype, cuda::Layout layout,
                          const PoolProblem& p, const Options& o, uintptr_t address) {
    PoolCall call = call_of(pass, kind, dtype, layout, p, o);
    place_at(call, address);
    std::string reason;
    const PoolInstance* chosen = cuda::choose_pool_instance(call, pass, &reason);
    return chosen != nullptr ? std::string(chosen->name) : "none: " + reason;
  });
  m.def(
      "run_pool",
      [](const std::string& name, const PoolProblem& problem, const Options& o,
         const std::map<std::string, py::object>& operands, const cuda::Device& device,
         const std::optional<emu::Peeks>& peeks, const py::kwargs& options) {
        return run_pool(name, problem, o, operands, device, peeks, emu::run_options(options));
      },
      py::arg("instance"), py::arg("problem"), py::arg("options"), py::arg("operands"),
      py::arg("device"), py::arg("peeks") = py::none());
}
