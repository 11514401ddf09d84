// The pybind11 module fastconv._C: geometry, the kernel catalogue and build facts. No tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "build_info.h"
#include "common/conv_problem.h"
#include "common/pool_python.h"
#include "cpu/conv_algorithm.h"
#include "cpu/isa.h"
#include "cuda/device_rates.h"
#include "cuda_lists.h"

namespace py = pybind11;
using fastconv::ConvProblem;
using fastconv::Direction;
using fastconv::DType;

namespace {

// A C++ enumeration as one of Python's own, an argument as its member. py::enum_ makes a class with
// a dozen functions of each, which took half of this file's time to compile.
template <class E>
struct Enumeration {
  static py::handle& type() {
    static py::handle held;  // never released: casts may outlive the module
    return held;
  }
  static void define(py::module_& m, const char* name,
                     std::initializer_list<std::pair<const char*, E>> members) {
    py::list pairs;
    for (const auto& [member, value] : members)
      pairs.append(py::make_tuple(member, static_cast<int>(value)));
    const py::object made = py::module_::import("enum").attr("Enum")(
        name, pairs, py::arg("module") = m.attr("__name__"));
    type() = py::object(made).release();
    m.attr(name) = made;
  }
};

template <class E>
struct EnumerationCaster {
  PYBIND11_TYPE_CASTER(E, py::detail::const_name("Enum"));
  bool load(py::handle from, bool) {
    if (!py::isinstance(from, Enumeration<E>::type())) return false;
    value = static_cast<E>(PyLong_AsLong(from.attr("_value_").ptr()));
    return true;
  }
  static py::handle cast(E from, py::return_value_policy, py::handle) {
    return Enumeration<E>::type()(static_cast<int>(from)).release();
  }
};

}  // namespace

namespace pybind11::detail {
template <>
struct type_caster<DType> : EnumerationCaster<DType> {};
template <>
struct type_caster<Direction> : EnumerationCaster<Direction> {};
template <>
struct type_caster<fastconv::cuda::Layout> : EnumerationCaster<fastconv::cuda::Layout> {};
template <>
struct type_caster<fastconv::cuda::Products> : EnumerationCaster<fastconv::cuda::Products> {};
template <>
struct type_caster<fastconv::cuda::PoolPass> : EnumerationCaster<fastconv::cuda::PoolPass> {};
}  // namespace pybind11::detail

namespace {

std::array<int64_t, 3> axes(const int64_t (&a)[3]) { return {a[0], a[1], a[2]}; }

const fastconv::cpu::ConvAlgorithm& algorithm(const std::string& name) {
  const auto* a = fastconv::cpu::find_conv_algorithm(name.c_str());
  if (a == nullptr) throw std::invalid_argument("unknown CPU algorithm '" + name + "'");
  return *a;
}

using fastconv::choose_pool;
using fastconv::cuda_algorithms;
using fastconv::cuda_device_refusal;
using fastconv::cuda_inceptions;
using fastconv::cuda_pools;
using fastconv::cuda::PoolInstance;
using fastconv::cuda::PoolPass;

// Calls fn(algorithm, instance) for every CUDA kernel instance of this build.
template <class F>
void each_cuda_instance(const F& fn) {
  const auto list = cuda_algorithms();
  for (int i = 0; i < list.size; ++i)
    for (int j = 0; j < list.data[i]->size; ++j) fn(*list.data[i], list.data[i]->instances[j]);
}

const fastconv::cuda::ConvInstance& cuda_instance(const std::string& algorithm,
                                                  const std::string& name) {
  const fastconv::cuda::ConvInstance* found = nullptr;
  each_cuda_instance([&](const auto& a, const auto& instance) {
    if (a.name == algorithm && instance.name == name) found = &instance;
  });
  if (found == nullptr)
    throw std::invalid_argument("unknown CUDA kernel instance '" + algorithm + "/" + name + "'");
  return *found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastconv geometry, kernel catalogue and build facts";

  Enumeration<DType>::define(m, "DType",
                             {{"float32", DType::kFloat32},
                              {"float64", DType::kFloat64},
                              {"bfloat16", DType::kBFloat16},
                              {"float16", DType::kFloat16}});
  Enumeration<Direction>::define(
      m, "Direction",
      {{"fprop", Direction::kFprop}, {"dgrad", Direction::kDgrad}, {"wgrad", Direction::kWgrad}});

  py::class_<ConvProblem>(m, "ConvProblem")
      .def(py::init(&fastconv::make_conv_problem), py::arg("input_size"), py::arg("weight_size"),
           py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"))
      .def_readonly("rank", &ConvProblem::rank)
      .def_readonly("N", &ConvProblem::N)
      .def_readonly("C", &ConvProblem::C)
      .def_readonly("K", &ConvProblem::K)
      .def_readonly("groups", &ConvProblem::groups)
      .def_property_readonly("input", [](const ConvProblem& p) { return axes(p.in); })
      .def_property_readonly("filter", [](const ConvProblem& p) { return axes(p.filter); })
      .def_property_readonly("output", [](const ConvProblem& p) { return axes(p.out); })
      .def_property_readonly("padding", [](const ConvProblem& p) { return axes(p.padding); })
      .def_property_readonly("stride", [](const ConvProblem& p) { return axes(p.stride); })
      .def_property_readonly("dilation", [](const ConvProblem& p) { return axes(p.dilation); })
      .def_property_readonly("macs", [](const ConvProblem& p) { return p.macs(); });

  m.def("cpu_algorithms", [] {
    std::vector<std::string> names;
    const auto list = fastconv::cpu::conv_algorithms();
    for (int i = 0; i < list.size; ++i) names.emplace_back(list.data[i]->name);
    return names;
  });
  m.def(
      "cpu_applicable",
      [](const std::string& name, const ConvProblem& p, DType dtype, Direction direction) {
        return algorithm(name).applicable(p, dtype, direction);
      },
      "Empty when the algorithm can run the problem, else the reason why not.");
  m.def("cpu_workspace",
        [](const std::string& name, const ConvProblem& p, DType dtype, Direction direction,
           int threads) { return algorithm(name).workspace(p, dtype, direction, threads); });
  m.def("cpu_cost",
        [](const std::string& name, const ConvProblem& p, DType dtype, Direction direction,
           int threads) { return algorithm(name).cost(p, dtype, direction, threads); });

  using fastconv::cuda::Layout, fastconv::cuda::Products;
  Enumeration<Layout>::define(m, "Layout", {{"NCHW", Layout::kNCHW}, {"NHWC", Layout::kNHWC}});
  Enumeration<Products>::define(
      m, "Products",
      {{"ieee", Products::kIeee}, {"tf32x3", Products::kTf32x3}, {"tf32", Products::kTf32}});
  m.def("cuda_algorithms", [] {
    std::vector<std::string> names;
    const auto list = cuda_algorithms();
    for (int i = 0; i < list.size; ++i) names.emplace_back(list.data[i]->name);
    return names;
  });
  m.def(
      "cuda_instances",
      [] {
        py::list all;
        each_cuda_instance([&](const auto& a, const auto& i) {
          all.append(py::make_tuple(a.name, i.name, i.direction, i.dtype, i.layout, i.products));
        });
        return all;
      },
      "Every kernel instance: (algorithm, instance, direction, dtype, layout, products).");
  m.def(
      "cuda_stats_instances",
      [] {
        std::vector<std::string> names;
        each_cuda_instance([&](const auto& a, const auto& i) {
          if (i.stats_workspace != nullptr) names.push_back(std::string(a.name) + "/" + i.name);
        });
        return names;
      },
      "Those, as \"algorithm/instance\", that form the statistics of y's channels along with y.");
  m.def(
      "cuda_refusal",
      [](const std::string& algorithm, const std::string& instance, const ConvProblem& p) {
        return cuda_instance(algorithm, instance).applicable(p);
      },
      "Empty when the instance can run the problem, else the reason why not.");
  m.def(
      "cuda_capability",
      [](const std::string& algorithm, const std::string& instance) {
        return cuda_instance(algorithm, instance).capability;
      },
      "The only compute capability that the instance's code is for; 0: all.");
  m.def(
      "cuda_candidates",
      [](const ConvProblem& p, DType dtype, Direction direction, fastconv::cuda::Layout layout,
         fastconv::cuda::Products products, int capability, int sm_count, bool statistics) {
        const fastconv::cuda::Device device{capability, sm_count};
        py::list all;
        each_cuda_instance([&](const auto& a, const auto& i) {
          if (i.dtype != dtype || i.direction != direction || i.layout != layout ||
              i.products > products)
            return;
          std::string reason = cuda_device_refusal(i, device);
          if (reason.empty()) reason = i.applicable(p);
          const bool runs = reason.empty();
          const auto bytes =
              statistics && i.stats_workspace != nullptr ? i.stats_workspace : i.workspace;
          all.append(py::make_tuple(a.name, i.name, reason, runs ? i.cost(p, device) : 0.0,
                                    runs ? bytes(p, device) : 0));
        });
        return all;
      },
      py::arg("problem"), py::arg("dtype"), py::arg("direction"), py::arg("layout"),
      py::arg("products"), py::arg("capability"), py::arg("sm_count"),
      py::arg("statistics") = false,
      "The instances for a dtype, direction and layout against a problem: (algorithm, instance,"
      " reason why not or empty, estimated seconds, workspace bytes). statistics: the bytes with"
      " those for statistics of y, of instances that take them.");

  m.def(
      "cuda_rates",
      [](int capability, int sm_count) {
        const auto r = fastconv::cuda::device_rates({capability, sm_count});
        py::dict all;
        all["bytes_per_s"] = r.bytes_per_s;
        all["l2_bytes_per_s"] = r.l2_bytes_per_s;
        all["fma_flops"] = r.fma_flops;
        all["fp64_flops"] = r.fp64_flops;
        all["tensor_16_flops"] = r.tensor_16_flops;
        all["tensor_tf32_flops"] = r.tensor_tf32_flops;
        all["warpgroup_16_flops"] = r.warpgroup_16_flops;
        all["launch_s"] = r.launch_s;
        return all;
      },
      "What the cost models take such a device to do: csrc/cuda/device_rates.h.");

  m.def(
      "cuda_inceptions",
      [] {
        py::list all;
        const auto list = cuda_inceptions();
        for (int i = 0; i < list.size; ++i)
          all.append(py::make_tuple(list.data[i].name, list.data[i].dtype, list.data[i].layout,
                                    list.data[i].products));
        return all;
      },
      "Every kernel instance of the inception module: (name, dtype, layout, products).");
  m.def(
      "cuda_inception_candidates",
      [](const fastconv::InceptionSizes& sizes, DType dtype, fastconv::cuda::Layout layout,
         fastconv::cuda::Products products, int capability, int sm_count) {
        const fastconv::cuda::Device device{capability, sm_count};
        const auto call =
            fastconv::inception_of(sizes, dtype, layout == fastconv::cuda::Layout::kNHWC);
        py::list all;
        const auto list = cuda_inceptions();
        for (int i = 0; i < list.size; ++i) {
          const auto& each = list.data[i];
          if (each.dtype != dtype || each.layout != layout || each.products > products) continue;
          const std::string reason = each.applicable(call);
          all.append(py::make_tuple(each.name, each.products, reason,
                                    reason.empty() ? each.cost(call, device) : 0.0));
        }
        return all;
      },
      "The instances for a dtype and layout against a module's sizes (inception_call.h): (name,"
      " products, reason why not or empty, estimated seconds).");

  fastconv::bind_pool_problem(m);
  Enumeration<PoolPass>::define(m, "PoolPass",
                                {{"forward", PoolPass::kForward},
                                 {"backward", PoolPass::kBackward},
                                 {"gather", PoolPass::kGather},
                                 {"unpool", PoolPass::kUnpool}});
  m.def(
      "cuda_pool_instances",
      [] {
        py::list all;
        for (int i = 0; i < cuda_pools().size; ++i) {
          const PoolInstance& p = *cuda_pools().data[i];
          all.append(py::make_tuple(p.name, p.pass, p.kind, p.dtype, p.layout));
        }
        return all;
      },
      "Every pooling kernel instance: (name, pass, kind, dtype, layout).");
  m.def(
      "cuda_pool_choice",
      [](PoolPass pass, fastconv::PoolKind kind, DType dtype, fastconv::cuda::Layout layout,
         const fastconv::PoolProblem& problem, int index, bool include_pad, int64_t divisor,
         double power, bool rescale, uintptr_t address) -> std::string {
        fastconv::PoolCall call{};
        void* const at = reinterpret_cast<void*>(address);
        call.p = problem, call.dtype = dtype, call.kind = kind;
        call.index_kind = static_cast<fastconv::PoolIndex>(index);
        call.channels_last = layout == fastconv::cuda::Layout::kNHWC;
        call.backward = pass == PoolPass::kBackward;
        call.x = call.y = call.dy = call.result = call.index = at;
        call.include_pad = include_pad, call.divisor = divisor;
        call.power = power, call.rescale = rescale;
        const PoolInstance* chosen = choose_pool(call, pass);
        return chosen == nullptr ? "" : chosen->name;
      },
      py::arg("pass_"), py::arg("kind"), py::arg("dtype"), py::arg("layout"), py::arg("problem"),
      py::arg("index") = 0, py::arg("include_pad") = true, py::arg("divisor") = 0,
      py::arg("power") = 1.0, py::arg("rescale") = false, py::arg("address") = 256,
      "The name of the instance that an op runs whose operands all lie at `address`.");

  m.attr("build_torch") = fastconv::build_info.torch;
  m.attr("build_id") = fastconv::build_info.id;
  m.attr("build_compiler") = fastconv::build_info.compiler;
  m.attr("build_cuda") = fastconv::build_info.cuda;
  m.attr("build_archs") = fastconv::build_info.archs;

  m.def("cpu_isa", [] { return fastconv::cpu::isa_name(fastconv::cpu::active_isa()); });
  m.def("cpu_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < 4; ++i)
      if (fastconv::cpu::isa_available(static_cast<fastconv::cpu::Isa>(i)))
        names.emplace_back(fastconv::cpu::isa_name(static_cast<fastconv::cpu::Isa>(i)));
    return names;
  });
  m.def("set_cpu_isa", [](const std::string& name) {
    if (!fastconv::cpu::set_active_isa(name.c_str()))
      throw std::invalid_argument("instruction set '" + name + "' is not available here");
  });
}
