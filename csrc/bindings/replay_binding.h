// Registers the function replay of mempool._core.
#pragma once

#include <pybind11/pybind11.h>

namespace mempool::bindings {

// Adds the function replay to the module.
void add_replay(pybind11::module_& m);

}  // namespace mempool::bindings
