// What rows plans, for the emulation's Python module (rows_bindings.cpp).
#pragma once
#include <pybind11/pybind11.h>

void bind_rows(pybind11::module_& m);
