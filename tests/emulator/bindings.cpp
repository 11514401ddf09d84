// The Python module of the emulation: the registered kernel instances, and a call that runs one of
// them on plain bytes. tests/emulated.py puts tensors, dtypes and layouts around it.
#include "cuda/conv_algorithm.h"
#include "cuda/conv_tma_model.h"
#include "cuda/launch.h"
#include "halo_bindings.h"
#include "inception_bindings.h"
#include "norm_bindings.h"
#include "pool_bindings.h"
#include "python_buffers.h"
#include "rows_bindings.h"

namespace py = pybind11;
using namespace fastconv;
using emu::InputBuffer;
using emu::OutputBuffer;

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

// What a call says of its epilogue, beside the residual: y is the channels from `first` on of a
// tensor of epilogue.y_channels, or dense where that is 0.
struct SlicedEpilogue {
  Epilogue epilogue;
  int64_t first;
  bool residual_off;  // aligned to its element only, wherever the other operands lie
};

// a and b: the operands in the order of the direction, (x, w), (dy, w) or (dy, x). Returns (result
// or the peeked places of it, counts of the run, bytes of workspace, and with `stats` mean and m2).
py::tuple run_conv(const std::string& algorithm, const std::string& name,
                   const ConvProblem& problem, const py::object& a, const py::object& b,
                   const py::object& bias, const cuda::Device& device,
                   const std::optional<emu::Peeks>& peeks, const SlicedEpilogue& with,
                   const py::object& residual, bool stats, const emu::RunOptions& options) {
  const cuda::ConvInstance& instance = find_instance(algorithm, name);
  const std::string full_name = algorithm + " / " + name + ": ";
  const std::string refused = instance.applicable(problem);
  if (!refused.empty()) throw std::invalid_argument(full_name + refused);

  const size_t element = element_bytes(instance.dtype);
  const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * element; };
  const size_t x_bytes = bytes(problem.N * problem.C * problem.in_size());
  const size_t w_bytes = bytes(problem.K * problem.channels_per_group() * problem.filter_size());
  const int64_t y_channels = with.epilogue.y_channels > 0 ? with.epilogue.y_channels : problem.K;
  const size_t y_bytes = bytes(problem.N * y_channels * problem.out_size());
  const bool fprop = instance.direction == Direction::kFprop;
  const bool dgrad = instance.direction == Direction::kDgrad;

  const InputBuffer first(fprop ? "x" : "dy", a, element, options.placement);
  const InputBuffer second(fprop || dgrad ? "w" : "x", b, element, options.placement);
  std::optional<InputBuffer> third;
  if (!bias.is_none()) third.emplace("bias", bias, element, options.placement);
  std::optional<InputBuffer> fourth;
  if (!residual.is_none())
    fourth.emplace("residual", residual, element,
                   with.residual_off ? emu::Placement::kOffset : options.placement);
  const auto expect = [&](const char* what, size_t given, size_t wanted) {
    if (given != wanted)
      throw std::invalid_argument(full_name + what + " has " + std::to_string(given) +
                                  " bytes, expected " + std::to_string(wanted));
  };
  expect("the first operand", first.bytes(), fprop ? x_bytes : y_bytes);
  expect("the second operand", second.bytes(), fprop || dgrad ? w_bytes : x_bytes);
  if (third) expect("the bias", third->bytes(), bytes(problem.K));
  if (fourth)
    expect("the residual", fourth->bytes(), bytes(problem.N * problem.K * problem.out_size()));

  const bool sparse = peeks.has_value();
  const OutputBuffer result(fprop   ? "y"
                            : dgrad ? "dx"
                                    : "dw",
                            fprop   ? y_bytes
                            : dgrad ? x_bytes
                                    : w_bytes,
                            options.placement == emu::Placement::kOffset ? element : 16, element,
                            options.placement, sparse);
  if (stats && instance.stats_workspace == nullptr)
    throw std::invalid_argument(full_name + "takes no statistics along");
  const auto scratch = static_cast<size_t>(stats ? instance.stats_workspace(problem, device)
                                                 : instance.workspace(problem, device));
  const size_t wide = element == 8 ? 8 : 4;  // of statistics
  const OutputBuffer workspace("workspace", scratch, 256, stats ? wide : element,
                               emu::Placement::kEndAligned, sparse);
  const auto channels = static_cast<size_t>(stats ? problem.K : 0);
  const OutputBuffer mean("mean", channels * wide, wide, wide, options.placement, sparse);
  const OutputBuffer m2("m2", channels * wide, wide, wide, options.placement, sparse);

  cuda::ConvCall call{};
  call.problem = problem;
  call.x = fprop ? first.data() : dgrad ? result.data() : second.data();
  call.w = fprop || dgrad ? second.data() : result.data();
  call.y = fprop ? result.data() : first.data();
  call.bias = third ? third->data() : nullptr;
  call.epilogue = with.epilogue;
  call.epilogue.residual = fourth ? fourth->data() : nullptr;
  if (with.epilogue.y_channels > 0) {
    const bool nhwc = instance.layout == cuda::Layout::kNHWC;
    call.y = result.data() + bytes(with.first * (nhwc ? 1 : problem.out_size()));
  }
  call.workspace = scratch > 0 ? workspace.data() : nullptr;
  call.mean = stats ? mean.data() : nullptr;
  call.m2 = stats ? m2.data() : nullptr;
  call.device = device;

  emu::Statistics statistics;
  int error = 0;
  std::string wrong =
      emu::guarded_run(options, &statistics, [&] { error = instance.launch(call); });
  if (wrong.empty() && error != 0)
    wrong = "the launcher returned " + std::to_string(error) + ": " + cuda::error_text(error);
  if (wrong.empty()) wrong = first.changed();
  if (wrong.empty()) wrong = second.changed();
  if (wrong.empty() && third) wrong = third->changed();
  if (wrong.empty() && fourth) wrong = fourth->changed();
  if (wrong.empty()) wrong = result.damage();
  if (wrong.empty()) wrong = workspace.damage();
  if (wrong.empty()) wrong = mean.damage();
  if (wrong.empty()) wrong = m2.damage();
  if (!wrong.empty()) throw std::runtime_error(full_name + wrong);

  py::object out;
  if (sparse) {
    py::list places;
    for (const auto& [offset, size] : *peeks) places.append(result.read(offset, size));
    out = places;
  } else {
    out = result.read();
  }
  if (stats && !sparse) return py::make_tuple(out, statistics, scratch, mean.read(), m2.read());
  return py::make_tuple(out, statistics, scratch);
}

}  // namespace

PYBIND11_MODULE(FC_MODULE_NAME, m) {
  emu::bind_common(m);
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
  py::enum_<cuda::Products>(m, "Products", py::module_local())
      .value("ieee", cuda::Products::kIeee)
      .value("tf32x3", cuda::Products::kTf32x3)
      .value("tf32", cuda::Products::kTf32);
  py::class_<ConvProblem>(m, "ConvProblem", py::module_local())
      .def(py::init(&make_conv_problem), py::arg("input_size"), py::arg("weight_size"),
           py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
  py::class_<cuda::Device>(m, "Device", py::module_local())
      .def(
          py::init([](int capability, int sm_count) { return cuda::Device{capability, sm_count}; }),
          py::arg("capability"), py::arg("sm_count"));
  py::class_<SlicedEpilogue>(m, "Epilogue", py::module_local())
      .def(py::init([](int activation, double slope, bool residual_after, int64_t y_channels,
                       int64_t first, bool residual_off) {
             Epilogue e;
             e.activation = static_cast<Activation>(activation);
             e.slope = slope;
             e.residual_after = residual_after;
             e.y_channels = y_channels;
             return SlicedEpilogue{e, first, residual_off};
           }),
           py::arg("activation") = 0, py::arg("slope") = 0.0, py::arg("residual_after") = false,
           py::arg("y_channels") = 0, py::arg("first") = 0, py::arg("residual_off") = false);
  using cuda::ConvInstance;
  py::class_<ConvInstance>(m, "ConvInstance", py::module_local())
      .def_property_readonly("name", [](const ConvInstance& i) { return i.name; })
      .def_readonly("direction", &ConvInstance::direction)
      .def_readonly("dtype", &ConvInstance::dtype)
      .def_readonly("layout", &ConvInstance::layout)
      .def_readonly("products", &ConvInstance::products)
      .def("refusal", [](const ConvInstance& i, const ConvProblem& p) { return i.applicable(p); })
      .def("workspace", [](const ConvInstance& i, const ConvProblem& p,
                           const cuda::Device& device) { return i.workspace(p, device); })
      .def_property_readonly("takes_stats",
                             [](const ConvInstance& i) { return i.stats_workspace != nullptr; })
      .def("cost", [](const ConvInstance& i, const ConvProblem& p, const cuda::Device& device) {
        return i.cost(p, device);
      });

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
         const py::object& a, const py::object& b, const py::object& bias,
         const cuda::Device& device, const std::optional<emu::Peeks>& peeks,
         const std::optional<SlicedEpilogue>& epilogue, const py::object& residual, bool stats,
         const py::kwargs& options) {
        return run_conv(algorithm, instance, problem, a, b, bias, device, peeks,
                        epilogue.value_or(SlicedEpilogue{}), residual, stats,
                        emu::run_options(options));
      },
      py::arg("algorithm"), py::arg("instance"), py::arg("problem"), py::arg("a"), py::arg("b"),
      py::arg("bias"), py::arg("device"), py::arg("peeks") = py::none(),
      py::arg("epilogue") = py::none(), py::arg("residual") = py::none(), py::arg("stats") = false);
  // Of the convolutions by TMA alone.
  m.def("tma_figures",
        [](const std::string& name, const ConvProblem& p, const cuda::Device& device) {
          cuda::TmaFigures f;
          if (!cuda::tma_figures(name.c_str(), p, device, &f)) throw std::invalid_argument(name);
          py::dict d;
          d["l2_bytes_per_flop"] = f.l2_bytes_per_flop;
          d["wave_efficiency"] = f.wave_efficiency;
          d["multiply_s"] = f.multiply_s;
          d["rounds"] = f.rounds;
          d["l2_bytes"] = f.l2_bytes;
          d["hand_over_s"] = f.hand_over_s;
          return d;
        });
  m.def(
      "run_probe",
      [](const py::object& x, const py::kwargs& options) {
        const emu::RunOptions o = emu::run_options(options);
        const InputBuffer in("x", x, 4, o.placement);
        const OutputBuffer out("y", in.bytes(), 4, 4, o.placement, false);
        emu::Statistics statistics;
        const std::string wrong = emu::guarded_run(o, &statistics, [&] {
          cuda::launch_probe(reinterpret_cast<const int32_t*>(in.data()),
                             reinterpret_cast<int32_t*>(out.data()),
                             static_cast<int64_t>(in.bytes() / 4), nullptr);
        });
        if (!wrong.empty()) throw std::runtime_error(wrong);
        return py::make_tuple(out.read(), statistics);
      },
      py::arg("x"));
  bind_pools(m);
  bind_norm(m);
  bind_inception(m);
  bind_halo(m);
  bind_rows(m);
}
