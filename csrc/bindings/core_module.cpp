// mempool._core: the module that gives Python the allocator and its options. It uses nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "backend/host_info.h"
#include "common/bytes.h"
#include "common/errors.h"
#include "common/options.h"
#include "device_binding.h"
#include "kernels/kernels.h"
#include "ledger_binding.h"
#include "metrics_binding.h"
#include "python_hooks.h"
#include "replay_binding.h"
#include "snapshot_binding.h"

namespace py = pybind11;

namespace {

// (key, type, help, default, value under `conf`) of each option; a value is None for "no limit" and "never".
py::list options(const std::string& conf, std::size_t whole_bytes) {
  mempool::Options set;
  mempool::parse_conf(set, conf, whole_bytes);
  const std::vector<mempool::OptionValue> defaults = mempool::option_values({});
  const std::vector<mempool::OptionValue> values = mempool::option_values(set);
  py::list out;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const mempool::OptionInfo& info = mempool::option_table()[i];
    out.append(py::make_tuple(info.key, info.type, info.help, defaults[i], values[i]));
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  using namespace pybind11::literals;
  m.doc() = "The compiled part of mempool.";
  py::register_exception<mempool::ConfigError>(m, "ConfigError", PyExc_ValueError);
  const py::object state_error =
      py::register_exception<mempool::PoolStateError>(m, "PoolStateError", PyExc_RuntimeError);
  py::register_exception<mempool::PoolClosedError>(m, "PoolClosedError", state_error);
  py::register_exception<mempool::PoolAsleepError>(m, "PoolAsleepError", state_error);

  m.attr("version") = MEMPOOL_VERSION;
  m.def("parse_bytes", &mempool::parse_bytes, "text"_a, "whole_bytes"_a = 0);
  m.def("format_bytes", &mempool::format_bytes, "bytes"_a);
  m.def("usable_memory_bytes", [] { return mempool::usable_memory_bytes(); });
  m.def("kernel_isa", [] { return mempool::kernels::name_of(mempool::kernels::current_isa()); });
  m.def("page_bytes", &mempool::page_bytes);
  m.def("huge_page_bytes", [] { return mempool::huge_page_bytes(); });
  m.def("huge_pages_available", &mempool::huge_pages_available);
  m.def("options", &options, "conf"_a = "", "whole_bytes"_a = 0);
  mempool::bindings::add_device_classes(m);
  mempool::bindings::add_snapshots(m);
  mempool::bindings::add_shared_ledger(m);
  mempool::bindings::add_metrics(m);
  mempool::bindings::add_replay(m);
  m.def("set_pressure_handler", &mempool::bindings::set_pressure_handler, "handler"_a.none(true));
  m.def("set_refusal_handler", &mempool::bindings::set_refusal_handler, "handler"_a.none(true));
  m.def("set_stack_capture", &mempool::bindings::set_stack_capture, "on"_a);
  m.def("stack_frames", &mempool::bindings::stack_frames, "id"_a);
  m.def("reset_after_fork", &mempool::bindings::reset_after_fork);
  m.def("retire_hooks", &mempool::bindings::retire_hooks);
  mempool::bindings::install_hooks();
}
