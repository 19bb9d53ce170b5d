// The ledger that processes share: joining it, sharing devices, its figures. Sizes are bytes; None stands for "no
// limit".
#include "ledger_binding.h"

#include <pybind11/stl.h>

#include <string>

#include "backend/cpu_device.h"
#include "backend/cuda_device.h"
#include "backend/host_info.h"
#include "backend/metrics_board.h"
#include "backend/pinned_device.h"
#include "backend/process_ledger.h"
#include "limits.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

// (key, limit, held, peak of the sum, [(pid, name, is alive, held, peak) of each process]) of each device, by number.
py::list figures_of_all() {
  SharedLedger* const ledger = process_ledger();
  py::list out;
  if (ledger == nullptr) return out;
  for (const std::string& key : ledger->keys()) {
    const SharedFigures figures = shared_figures(*ledger, static_cast<int>(out.size()));
    py::list processes;
    for (const SharedLedger::Process& each : figures.processes) {
      processes.append(py::make_tuple(each.pid, each.name, each.is_alive, each.held, each.peak));
    }
    out.append(py::make_tuple(key, to_limit(figures.limit), figures.held, figures.peak, processes));
  }
  return out;
}

}  // namespace

void add_shared_ledger(py::module_& m) {
  using namespace pybind11::literals;
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("join_ledger", &join_ledger, "name"_a, "process"_a, Release(),
        "Joins the ledger of this name for good; `process` is this process's name there.");
  m.def("ledger_path", &process_ledger_path, "That of the ledger that this process is in; empty for none.");
  m.def(
      "prepare_exit",
      [] {
        tell_metrics();
        if (SharedLedger* const ledger = process_ledger()) ledger->prepare_exit();
      },
      Release(), "For a process that is about to end: the last one in the ledger takes its name away.");
  m.def(
      "share_cpu",
      [](const std::string& limit) {
        CachingAllocator* const device = cpu_device_if_made();
        if (device != nullptr) share(*device, "cpu", parse_shared_limit(limit, usable_memory_bytes()));
      },
      "limit"_a, Release(), "Shares what the CPU's allocator holds, if it was made. `limit` is text; empty for none.");
  m.def(
      "share_pinned",
      [](const std::string& limit) { share_pinned_device(parse_shared_limit(limit, usable_memory_bytes())); },
      "limit"_a, Release(), "The same for pinned host memory.");
  m.def(
      "share_cuda",
      [](int ordinal, const std::string& limit) {
        if (cuda_device_if_made(ordinal) == nullptr) return;
        share_cuda_device(ordinal, parse_shared_limit(limit, cuda_device_bytes(ordinal)));
      },
      "ordinal"_a, "limit"_a, Release(), "The same for a CUDA device.");
  m.def("share_cuda_later", &share_cuda_later, "limit"_a, "The limit for CUDA devices that are made later.");
  m.def("shared_number", [](CachingAllocator& device) { return shared_number(device); }, "device"_a);
  m.def("shared_limit", [](CachingAllocator& device) { return to_limit(shared_limit(device)); }, "device"_a);
  m.def(
      "set_shared_limit", [](CachingAllocator& device, Limit limit) { set_shared_limit(device, from_limit(limit)); },
      "device"_a, "limit"_a, Release());
  m.def("shared_figures", &figures_of_all);
}

}  // namespace mempool::bindings
