// The Python module of the emulation: the registered kernel instances, and a call that runs one of
// them on plain bytes. tests/emulated.py puts tensors, dtypes and layouts around it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include "cuda/conv_algorithm.h"
#include "cuda/launch.h"
#include "guarded_buffers.h"
#include "scheduler.h"
#include "shared_memory.h"

namespace py = pybind11;
using namespace fastconv;
using emu::GuardedBuffer;
using emu::Placement;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

namespace {

const cuda::ConvInstance& find_instance(const std::string& algorithm, const std::string& name) {
  const auto list = cuda::conv_algorithms();
  for (int i = 0; i < list.size; ++i) {
    if (list.data[i]->name != algorithm) continue;
    for (int j = 0; j < list.data[i]->size; ++j)
      if (list.data[i]->instances[j].name == name) return list.data[i]->instances[j];
  }
  throw std::invalid_argument("no kernel instance " + algorithm + " / " + name);
}

size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// One operand of a launch: guarded memory, and what the kernel may do with it.
class Operand {
 public:
  Operand(const char* name, const Bytes& content, size_t alignment, Placement placement)
      : content_(content),
        buffer_(name, static_cast<size_t>(content.nbytes()), alignment, placement) {
    std::memcpy(buffer_.data(), content_.data(), buffer_.bytes());
  }
  void* data() const { return buffer_.data(); }
  // Empty when the kernel left it as it was.
  std::string changed() const {
    if (std::memcmp(buffer_.data(), content_.data(), buffer_.bytes()) != 0)
      return "the kernel wrote to its input " + buffer_.name();
    return margin_damage(buffer_);
  }
  static std::string margin_damage(const GuardedBuffer& buffer) {
    return buffer.margins_intact() ? "" : "the kernel wrote outside of " + buffer.name();
  }

 private:
  Bytes content_;
  GuardedBuffer buffer_;
};

struct Outcome {
  Bytes result;
  emu::Statistics statistics;
  int64_t workspace;
};

struct RunOptions {
  uint64_t seed;
  int workers;
  Placement placement;
  cuda::Device device;
};

// The two operands in the order of the direction: (x, w), (dy, w), (dy, x).
Outcome run_conv(const std::string& algorithm, const std::string& name, const ConvProblem& problem,
                 const Bytes& a, const Bytes& b, const std::optional<Bytes>& bias,
                 const RunOptions& options) {
  const cuda::ConvInstance& instance = find_instance(algorithm, name);
  const std::string refused = instance.applicable(problem);
  if (!refused.empty()) throw std::invalid_argument(algorithm + " / " + name + ": " + refused);

  const size_t element = element_bytes(instance.dtype);
  const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * element; };
  const size_t x_bytes = bytes(problem.N * problem.C * problem.in_size());
  const size_t w_bytes = bytes(problem.K * problem.channels_per_group() * problem.filter_size());
  const size_t y_bytes = bytes(problem.N * problem.K * problem.out_size());
  const bool fprop = instance.direction == Direction::kFprop;
  const bool dgrad = instance.direction == Direction::kDgrad;
  const auto expect = [&](const char* what, const Bytes& given, size_t wanted) {
    if (static_cast<size_t>(given.nbytes()) != wanted)
      throw std::invalid_argument(std::string(what) + " has " + std::to_string(given.nbytes()) +
                                  " bytes, expected " + std::to_string(wanted));
  };
  expect("the first operand", a, fprop ? x_bytes : y_bytes);
  expect("the second operand", b, fprop || dgrad ? w_bytes : x_bytes);
  if (bias) expect("the bias", *bias, bytes(problem.K));

  const Operand first(fprop ? "x" : "dy", a, element, options.placement);
  const Operand second(fprop || dgrad ? "w" : "x", b, element, options.placement);
  std::optional<Operand> third;
  if (bias) third.emplace("bias", *bias, element, options.placement);
  const GuardedBuffer result(fprop   ? "y"
                             : dgrad ? "dx"
                                     : "dw",
                             fprop   ? y_bytes
                             : dgrad ? x_bytes
                                     : w_bytes,
                             16, options.placement);
  const int64_t scratch = instance.workspace(problem, options.device);
  const GuardedBuffer workspace("workspace", static_cast<size_t>(scratch), 256,
                                Placement::kEndAligned);

  cuda::ConvCall call{};
  call.problem = problem;
  call.x = fprop ? first.data() : dgrad ? result.data() : second.data();
  call.w = fprop || dgrad ? second.data() : result.data();
  call.y = fprop ? result.data() : first.data();
  call.bias = third ? third->data() : nullptr;
  call.workspace = scratch > 0 ? workspace.data() : nullptr;
  call.device = options.device;

  Outcome outcome;
  int error;
  std::string wrong;
  {
    const py::gil_scoped_release unlocked;
    emu::begin_run({options.seed, options.workers});
    error = instance.launch(call);
    wrong = emu::end_run(&outcome.statistics);
  }
  if (wrong.empty() && error != 0)
    wrong = "the launcher returned " + std::to_string(error) + ": " + cuda::error_text(error);
  if (wrong.empty()) wrong = first.changed();
  if (wrong.empty()) wrong = second.changed();
  if (wrong.empty() && third) wrong = third->changed();
  if (wrong.empty()) wrong = Operand::margin_damage(result);
  if (wrong.empty()) wrong = Operand::margin_damage(workspace);
  if (!wrong.empty()) throw std::runtime_error(algorithm + " / " + name + ": " + wrong);
  outcome.result = Bytes(static_cast<py::ssize_t>(result.bytes()));
  std::memcpy(outcome.result.mutable_data(), result.data(), result.bytes());
  outcome.workspace = scratch;
  return outcome;
}

}  // namespace

PYBIND11_MODULE(FC_MODULE_NAME, m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("float64", DType::kFloat64)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16);
  py::enum_<Direction>(m, "Direction", py::module_local())
      .value("fprop", Direction::kFprop)
      .value("dgrad", Direction::kDgrad)
      .value("wgrad", Direction::kWgrad);
  py::enum_<cuda::Layout>(m, "Layout", py::module_local())
      .value("NCHW", cuda::Layout::kNCHW)
      .value("NHWC", cuda::Layout::kNHWC);
  py::enum_<Placement>(m, "Placement", py::module_local())
      .value("end", Placement::kEnd)
      .value("start", Placement::kStart)
      .value("end_aligned", Placement::kEndAligned);
  py::class_<ConvProblem>(m, "ConvProblem", py::module_local())
      .def(py::init(&make_conv_problem), py::arg("input_size"), py::arg("weight_size"),
           py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
  py::class_<cuda::ConvInstance>(m, "ConvInstance", py::module_local())
      .def_property_readonly("name", [](const cuda::ConvInstance& i) { return i.name; })
      .def_readonly("direction", &cuda::ConvInstance::direction)
      .def_readonly("dtype", &cuda::ConvInstance::dtype)
      .def_readonly("layout", &cuda::ConvInstance::layout)
      .def_readonly("tf32", &cuda::ConvInstance::tf32)
      .def("refusal",
           [](const cuda::ConvInstance& i, const ConvProblem& p) { return i.applicable(p); })
      .def("workspace", [](const cuda::ConvInstance& i, const ConvProblem& p, int capability,
                           int sm_count) { return i.workspace(p, {capability, sm_count}); })
      .def("cost", [](const cuda::ConvInstance& i, const ConvProblem& p, int capability,
                      int sm_count) { return i.cost(p, {capability, sm_count}); });
  py::class_<emu::Statistics>(m, "Statistics", py::module_local())
      .def_readonly("launches", &emu::Statistics::launches)
      .def_readonly("blocks", &emu::Statistics::blocks)
      .def_readonly("threads", &emu::Statistics::threads)
      .def_readonly("switches", &emu::Statistics::switches)
      .def_readonly("shared_bytes", &emu::Statistics::shared_bytes);

  m.def("instances", [] {
    py::list all;
    const auto list = cuda::conv_algorithms();
    for (int i = 0; i < list.size; ++i)
      for (int j = 0; j < list.data[i]->size; ++j)
        all.append(py::make_tuple(
            list.data[i]->name,
            py::cast(&list.data[i]->instances[j], py::return_value_policy::reference)));
    return all;
  });
  m.def(
      "run_conv",
      [](const std::string& algorithm, const std::string& instance, const ConvProblem& problem,
         const Bytes& a, const Bytes& b, const std::optional<Bytes>& bias, uint64_t seed,
         int workers, Placement placement, int capability, int sm_count) {
        Outcome o = run_conv(algorithm, instance, problem, a, b, bias,
                             {seed, workers, placement, {capability, sm_count}});
        return py::make_tuple(o.result, o.statistics, o.workspace);
      },
      py::arg("algorithm"), py::arg("instance"), py::arg("problem"), py::arg("a"), py::arg("b"),
      py::arg("bias"), py::kw_only(), py::arg("seed"), py::arg("workers"), py::arg("placement"),
      py::arg("capability"), py::arg("sm_count"));
  const auto run_probe = [](const py::array_t<int32_t, py::array::c_style>& x, uint64_t seed,
                            int workers) {
    const GuardedBuffer in("x", static_cast<size_t>(x.nbytes()), 4, Placement::kEnd);
    const GuardedBuffer out("y", static_cast<size_t>(x.nbytes()), 4, Placement::kEnd);
    std::memcpy(in.data(), x.data(), in.bytes());
    emu::Statistics statistics;
    emu::begin_run({seed, workers});
    cuda::launch_probe(reinterpret_cast<const int32_t*>(in.data()),
                       reinterpret_cast<int32_t*>(out.data()), x.size(), nullptr);
    const std::string wrong = emu::end_run(&statistics);
    if (!wrong.empty()) throw std::runtime_error(wrong);
    py::array_t<int32_t> y(x.size());
    std::memcpy(y.mutable_data(), out.data(), out.bytes());
    return py::make_tuple(y, statistics);
  };
  m.def("run_probe", run_probe, py::arg("x"), py::arg("seed"), py::arg("workers"));
}
