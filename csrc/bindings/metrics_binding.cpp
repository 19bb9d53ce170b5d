#include "metrics_binding.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "backend/metrics_board.h"
#include "backend/process_ledger.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

const char* name_of(FigureKind kind) {
  switch (kind) {
    case FigureKind::gauge:
      return "gauge";
    case FigureKind::peak:
      return "peak";
    case FigureKind::limit:
      return "limit";
    case FigureKind::counter:
      return "counter";
  }
  return "";
}

template <std::size_t N>
py::tuple table_of(const std::array<Figure, N>& figures) {
  py::tuple out(N);
  for (std::size_t i = 0; i < N; ++i) out[i] = py::make_tuple(figures[i].name, name_of(figures[i].kind));
  return out;
}

template <typename Of>
py::tuple one(const Of& metrics) {
  return py::make_tuple(metrics.figures, metrics.refusals);
}

// [(slot or -1, pid, name, [(key of the device, as metrics_tuple() has it)])]
py::list shared_metrics() {
  std::vector<SharedLedger::Worker> workers;
  std::vector<std::string> keys;
  {
    const py::gil_scoped_release release;
    workers = read_shared_metrics();
    if (SharedLedger* const ledger = process_ledger()) keys = ledger->keys();
  }
  py::list out;
  for (const SharedLedger::Worker& worker : workers) {
    py::list devices;
    for (const LedgerRows::OfDevice& each : worker.devices) {
      devices.append(py::make_tuple(keys.at(static_cast<std::size_t>(each.device)), metrics_tuple(each.metrics)));
    }
    out.append(py::make_tuple(worker.slot, worker.pid, worker.name, devices));
  }
  return out;
}

}  // namespace

py::tuple metrics_tuple(const Metrics& metrics) {
  py::dict pools;
  for (const Metrics::Labelled& each : metrics.pools) pools[py::str(each.label)] = one(each.metrics);
  return py::make_tuple(one(metrics.device), pools);
}

void add_metrics(py::module_& m) {
  m.attr("device_figures") = table_of(kDeviceFigures);
  m.attr("pool_figures") = table_of(kPoolFigures);
  py::tuple reasons(kOomReasons);
  for (std::size_t i = 0; i < kOomReasons; ++i) reasons[i] = to_string(static_cast<OomReason>(i));
  m.attr("oom_reasons") = reasons;
  m.attr("longest_metrics_label") = PoolGroups::kLongestLabel;
  m.def("shared_metrics", &shared_metrics,
        "Those of all processes in this one's ledger: [(slot, pid, name, [(key of the device, metrics)])]. Slot -1 has "
        "the counters of those that have ended.");
}

}  // namespace mempool::bindings
