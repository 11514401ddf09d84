// The normalisation part of the emulation's Python module (norm_bindings.cpp).
#pragma once
#include <pybind11/pybind11.h>

void bind_norm(pybind11::module_& m);
