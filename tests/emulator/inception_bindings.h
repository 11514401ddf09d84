// The inception module's part of the emulation's Python module (inception_bindings.cpp).
#pragma once
#include <pybind11/pybind11.h>

void bind_inception(pybind11::module_& m);
