// Metrics for Python: of one device, and of all processes in the ledger.
#pragma once

#include <pybind11/pybind11.h>

#include "core/accounts/metrics.h"

namespace mempool::bindings {

// ((figures, refusals) of the device, {label: (figures, refusals)}), in the order of the module's tables.
pybind11::tuple metrics_tuple(const Metrics& metrics);
// Adds those tables and shared_metrics() to the module.
void add_metrics(pybind11::module_& m);

}  // namespace mempool::bindings
