// What halo plans, for the emulation's Python module (halo_bindings.cpp).
#pragma once
#include <pybind11/pybind11.h>

void bind_halo(pybind11::module_& m);
