// The part of the module that pool_bindings.cpp adds; after the enums that bindings.cpp makes.
#pragma once
#include <pybind11/pybind11.h>

void bind_pools(pybind11::module_& m);
