// Registers the classes Device and Pool of mempool._core.
#pragma once

#include <pybind11/pybind11.h>

namespace mempool::bindings {

// Adds the classes Device and Pool to the module.
void add_device_classes(pybind11::module_& m);

}  // namespace mempool::bindings
