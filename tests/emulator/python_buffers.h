// Guarded buffers filled from, and read into, Python: whole as numpy bytes, or at a few places of a
// tensor too large to hold.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "guarded_buffers.h"
#include "scheduler.h"

namespace emu {

namespace py = pybind11;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
// Byte offsets and what lies there.
using Pokes = std::vector<std::pair<size_t, Bytes>>;
// (bytes of the whole tensor, what of it is not zero)
using Sparse = std::pair<size_t, Pokes>;
// Byte offsets and lengths.
using Peeks = std::vector<std::pair<size_t, size_t>>;

// What a kernel reads.
class InputBuffer {
 public:
  InputBuffer(const char* name, const py::object& content, size_t element_bytes,
              Placement placement)
      : content_(parse(content)),
        whole_(!py::isinstance<py::tuple>(content)),
        buffer_(name, Role::kInput, content_.first, element_bytes, element_bytes, placement,
                whole_ ? Fill::kPoison : Fill::kSparse) {
    for (const auto& [offset, bytes] : content_.second) {
      if (offset + bytes.size() > buffer_.bytes()) throw std::out_of_range("poke past the end");
      std::memcpy(buffer_.data() + offset, bytes.data(), static_cast<size_t>(bytes.size()));
    }
  }
  unsigned char* data() const { return buffer_.data(); }
  size_t bytes() const { return buffer_.bytes(); }
  // Empty when the kernel left it alone.
  std::string changed() const {
    for (const auto& [offset, bytes] : content_.second)
      if (std::memcmp(buffer_.data() + offset, bytes.data(), static_cast<size_t>(bytes.size())) !=
          0)
        return "the kernel wrote to its input " + buffer_.name();
    return buffer_.margins_intact() ? "" : "the kernel wrote outside of " + buffer_.name();
  }

 private:
  static Sparse parse(const py::object& content) {
    if (py::isinstance<py::tuple>(content)) return content.cast<Sparse>();
    auto bytes = content.cast<Bytes>();
    const auto size = static_cast<size_t>(bytes.nbytes());
    return {size, {{0, std::move(bytes)}}};
  }

  Sparse content_;
  bool whole_;
  GuardedBuffer buffer_;
};

// What a kernel writes.
class OutputBuffer {
 public:
  OutputBuffer(const char* name, size_t bytes, size_t alignment, size_t element_bytes,
               Placement placement, bool sparse)
      : buffer_(name, Role::kOutput, bytes, alignment, element_bytes, placement,
                sparse ? Fill::kSparse : Fill::kPoison) {}
  unsigned char* data() const { return buffer_.data(); }
  std::string damage() const {
    return buffer_.margins_intact() ? "" : "the kernel wrote outside of " + buffer_.name();
  }
  Bytes read(size_t offset, size_t bytes) const {
    if (offset + bytes > buffer_.bytes()) throw std::out_of_range("peek past the end");
    Bytes result(static_cast<py::ssize_t>(bytes));
    std::memcpy(result.mutable_data(), buffer_.data() + offset, bytes);
    return result;
  }
  Bytes read() const { return read(0, buffer_.bytes()); }

 private:
  GuardedBuffer buffer_;
};

// How a run goes, beside what is run.
struct RunOptions {
  Settings settings;
  Placement placement;
};

inline RunOptions run_options(const py::kwargs& options) {
  RunOptions o{{}, Placement::kEnd};
  for (const auto& [key, value] : options) {
    const auto name = key.cast<std::string>();
    if (name == "seed")
      o.settings.seed = value.cast<uint64_t>();
    else if (name == "workers")
      o.settings.workers = value.cast<int>();
    else if (name == "check_accesses")
      o.settings.check_accesses = value.cast<bool>();
    else if (name == "block_limit")
      o.settings.block_limit = value.cast<uint64_t>();
    else if (name == "seconds")
      o.settings.seconds = value.cast<double>();
    else if (name == "placement")
      o.placement = value.cast<Placement>();
    else
      throw py::type_error("unknown option " + name);
  }
  return o;
}

// Runs `launch` without the interpreter's lock; returns what went wrong, empty when nothing did.
template <class Launch>
std::string guarded_run(const RunOptions& options, Statistics* statistics, const Launch& launch) {
  const py::gil_scoped_release unlocked;
  begin_run(options.settings);
  try {
    launch();
  } catch (...) {  // whoever runs next would wait for this one to end
    end_run(statistics);
    throw;
  }
  return end_run(statistics);
}

inline void bind_common(py::module_& m) {
  py::class_<LaunchRecord>(m, "LaunchRecord", py::module_local())
      .def_readonly("kernel", &LaunchRecord::kernel)
      .def_readonly("blocks", &LaunchRecord::blocks)
      .def_readonly("threads", &LaunchRecord::threads)
      .def_readonly("dynamic_bytes", &LaunchRecord::dynamic_bytes);
  py::enum_<Placement>(m, "Placement", py::module_local())
      .value("end", Placement::kEnd)
      .value("start", Placement::kStart)
      .value("end_aligned", Placement::kEndAligned)
      .value("offset", Placement::kOffset);
  py::class_<Statistics>(m, "Statistics", py::module_local())
      .def_readonly("launches", &Statistics::launches)
      .def_readonly("blocks", &Statistics::blocks)
      .def_readonly("threads", &Statistics::threads)
      .def_readonly("switches", &Statistics::switches)
      .def_readonly("shared_bytes", &Statistics::shared_bytes)
      .def_property_readonly("records", [](const Statistics& s) { return s.records; });
}

}  // namespace emu
