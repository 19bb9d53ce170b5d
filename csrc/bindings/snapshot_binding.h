// Pictures of a device's heap, which are taken at one moment and read later.
#pragma once

#include <pybind11/pybind11.h>

namespace mempool::bindings {

// Adds the class TakenSnapshot and take_snapshot() to the module, after Device.
void add_snapshots(pybind11::module_& m);

}  // namespace mempool::bindings
