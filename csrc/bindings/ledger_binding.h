// Adds to mempool._core what has to do with a ledger that processes share.
#pragma once

#include <pybind11/pybind11.h>

namespace mempool::bindings {

// Expects that the class Device is registered.
void add_shared_ledger(pybind11::module_& m);

}  // namespace mempool::bindings
