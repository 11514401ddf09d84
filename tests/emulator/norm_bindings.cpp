// The normalisation part of the emulation's Python module: a call that runs one pass on plain
// bytes. tests/emulated_norm.py puts tensors around it.
#include "norm_bindings.h"

#include <map>

#include "cuda/launch.h"
#include "cuda/norm_launch.h"
#include "python_buffers.h"

namespace py = pybind11;
using namespace fastconv;
using emu::InputBuffer;
using emu::OutputBuffer;

namespace {

struct Shape {
  int64_t N, K, size;
  bool channels_last;
  DType dtype;
};

// Operands and results by the names of NormCall's members; `results` gives their bytes, and z may
// be among the operands instead, to be written in place. Returns ({result: bytes}, statistics).
py::tuple run_norm(NormPass pass, const Shape& s, const std::map<std::string, py::object>& operands,
                   const std::map<std::string, size_t>& results, int activation, double slope,
                   bool residual_after, int64_t z_channels, int64_t first, bool in_place,
                   double count, const emu::RunOptions& options) {
  const size_t element = s.dtype == DType::kFloat64 ? 8 : s.dtype == DType::kFloat32 ? 4 : 2;
  const size_t statistic = s.dtype == DType::kFloat64 ? 8 : 4;
  NormCall c{};
  c.N = s.N, c.K = s.K, c.size = s.size;
  c.channels_last = s.channels_last;
  c.dtype = s.dtype;
  c.epilogue.activation = static_cast<Activation>(activation);
  c.epilogue.slope = slope;
  c.epilogue.residual_after = residual_after;
  c.epilogue.y_channels = z_channels;
  c.count = count;
  const std::map<std::string, const void**> reads = {
      {"y", &c.y},       {"dz", &c.dz},       {"residual", &c.epilogue.residual},
      {"mean", &c.mean}, {"rstd", &c.rstd},   {"weight", &c.weight},
      {"bias", &c.bias}, {"sum_g", &c.sum_g}, {"sum_gy", &c.sum_gy}};
  const std::map<std::string, void**> writes = {{"z", &c.z},
                                                {"dy", &c.dy},
                                                {"dresidual", &c.dresidual},
                                                {"out_mean", &c.out_mean},
                                                {"out_m2", &c.out_m2},
                                                {"out_sum_g", &c.out_sum_g},
                                                {"out_sum_gy", &c.out_sum_gy}};
  const auto tensor = [](const std::string& name) {
    return name == "y" || name == "dz" || name == "residual" || name == "z" || name == "dy" ||
           name == "dresidual";
  };
  std::map<std::string, InputBuffer> inputs;
  std::map<std::string, OutputBuffer> outputs;
  const size_t alignment = options.placement == emu::Placement::kOffset ? element : 16;
  for (const auto& [name, bytes] : results) {
    const size_t each = tensor(name) ? element : statistic;
    const OutputBuffer& buffer =
        outputs
            .try_emplace(name, name.c_str(), bytes, tensor(name) ? alignment : statistic, each,
                         options.placement, false)
            .first->second;
    *writes.at(name) = buffer.data();
  }
  if (z_channels > 0)
    c.z = static_cast<unsigned char*>(c.z) +
          static_cast<size_t>(first * (s.channels_last ? 1 : s.size)) * element;
  for (const auto& [name, content] : operands) {
    if (in_place && name == "y") {
      const auto bytes = content.cast<emu::Bytes>();
      std::memcpy(c.z, bytes.data(), static_cast<size_t>(bytes.nbytes()));
      c.y = c.z;
      continue;
    }
    const size_t each = tensor(name) ? element : statistic;
    *reads.at(name) = inputs.try_emplace(name, name.c_str(), content, each, options.placement)
                          .first->second.data();
  }
  const auto scratch = static_cast<size_t>(cuda::norm_workspace(pass, c));
  const OutputBuffer workspace("workspace", scratch, 256, statistic, emu::Placement::kEndAligned,
                               false);
  c.workspace = scratch > 0 ? workspace.data() : nullptr;

  emu::Statistics statistics;
  int error = 0;
  std::string wrong =
      emu::guarded_run(options, &statistics, [&] { error = cuda::launch_norm(pass, c, nullptr); });
  if (wrong.empty() && error != 0)
    wrong = "the launcher returned " + std::to_string(error) + ": " + cuda::error_text(error);
  for (const auto& [name, buffer] : inputs)
    if (wrong.empty()) wrong = buffer.changed();
  for (const auto& [name, buffer] : outputs)
    if (wrong.empty()) wrong = buffer.damage();
  if (wrong.empty()) wrong = workspace.damage();
  if (!wrong.empty()) throw std::runtime_error("norm: " + wrong);
  py::dict read;
  for (const auto& [name, buffer] : outputs) read[py::str(name)] = buffer.read();
  return py::make_tuple(read, statistics);
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def(
      "run_norm",
      [](const std::string& pass, int64_t n, int64_t k, int64_t size, bool channels_last,
         const std::string& dtype, const std::map<std::string, py::object>& operands,
         const std::map<std::string, size_t>& results, int activation, double slope,
         bool residual_after, int64_t z_channels, int64_t first, bool in_place, double count,
         const py::kwargs& options) {
        const std::map<std::string, NormPass> passes = {{"stats", NormPass::kStats},
                                                        {"fprop", NormPass::kFprop},
                                                        {"sums", NormPass::kSums},
                                                        {"dgrad", NormPass::kDgrad}};
        const std::map<std::string, DType> dtypes = {{"float32", DType::kFloat32},
                                                     {"float64", DType::kFloat64},
                                                     {"bfloat16", DType::kBFloat16},
                                                     {"float16", DType::kFloat16}};
        return run_norm(passes.at(pass), {n, k, size, channels_last, dtypes.at(dtype)}, operands,
                        results, activation, slope, residual_after, z_channels, first, in_place,
                        count, emu::run_options(options));
      },
      py::arg("pass_"), py::arg("n"), py::arg("k"), py::arg("size"), py::arg("channels_last"),
      py::arg("dtype"), py::arg("operands"), py::arg("results"), py::arg("activation") = 0,
      py::arg("slope") = 0.0, py::arg("residual_after") = false, py::arg("z_channels") = 0,
      py::arg("first") = 0, py::arg("in_place") = false, py::arg("count") = 0.0);
}
