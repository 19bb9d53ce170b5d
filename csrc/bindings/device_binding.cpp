// The classes _core.Device and _core.Pool: thin handles on the core's allocators and accounts. Sizes are bytes; None
// stands for "no limit".
#include "device_binding.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "backend/cpu_device.h"
#include "backend/cuda_device.h"
#include "backend/host_info.h"
#include "backend/outside_watch.h"
#include "backend/pinned_device.h"
#include "limits.h"
#include "metrics_binding.h"
#include "pool_scope.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

void put(py::dict& out, const std::string& key, const Stat& stat) {
  out[py::str(key + ".current")] = stat.current;
  out[py::str(key + ".peak")] = stat.peak;
  out[py::str(key + ".allocated")] = stat.allocated;
  out[py::str(key + ".freed")] = stat.freed;
}

void put(py::dict& out, const std::string& key, const ByPool<Stat>& stats) {
  put(out, key + ".all", stats.all);
  put(out, key + ".small_pool", stats.small);
  put(out, key + ".large_pool", stats.large);
}

// One member of the three BlockStats (all, small, large), as a ByPool of Stat.
ByPool<Stat> pick(const ByPool<BlockStats>& blocks, Stat BlockStats::*member) {
  return {blocks.all.*member, blocks.small.*member, blocks.large.*member};
}

// The statistics under the keys of torch.cuda.memory_stats.
py::dict device_stats(CachingAllocator& device) {
  DeviceStats stats;
  std::size_t outside = 0;
  {
    const py::gil_scoped_release release;
    stats = device.stats();
    outside = device.outside_bytes();
  }
  py::dict out;
  put(out, "allocation", pick(stats.blocks, &BlockStats::count));
  put(out, "active", pick(stats.active, &BlockStats::count));
  put(out, "allocated_bytes", pick(stats.blocks, &BlockStats::bytes));
  put(out, "active_bytes", pick(stats.active, &BlockStats::bytes));
  put(out, "requested_bytes", pick(stats.blocks, &BlockStats::requested));
  put(out, "reserved_bytes", stats.reserved_bytes);
  put(out, "segment", stats.segments);
  put(out, "inactive_split", stats.free_ranges.count);
  put(out, "inactive_split_bytes", stats.free_ranges.bytes);
  // No block is "oversize" here: blocks of all sizes are split.
  put(out, "oversize_allocations", Stat{});
  put(out, "oversize_segments", Stat{});
  out["max_split_size"] = -1;
  out["num_alloc_retries"] = stats.alloc_retries;
  out["num_ooms"] = stats.ooms();
  out["num_sync_all_streams"] = 0;
  out["num_device_alloc"] = stats.commits;
  out["num_device_free"] = stats.decommits;
  out["num_pressure_calls"] = stats.pressure_calls;
  out["num_moves"] = stats.moves;
  out["moved_bytes"] = stats.moved_bytes;
  out["num_arena_locks"] = stats.arena_locks.taken;
  out["num_arena_lock_waits"] = stats.arena_locks.waits;
  out["outside_bytes"] = outside;
  return out;
}

py::dict pool_stats(const Pool& pool) {
  const Account account = pool.read();
  py::dict out;
  put(out, "allocation", account.blocks.count);
  put(out, "allocated_bytes", account.blocks.bytes);
  put(out, "requested_bytes", account.blocks.requested);
  out["num_ooms"] = account.ooms;
  out["num_pressure_calls"] = account.pressure_calls;
  return out;
}

std::shared_ptr<Pool> open_pool(CachingAllocator& device, std::string name, std::shared_ptr<Pool> parent, bool isolated,
                                Limit limit, Limit soft_limit, std::string label, bool for_one_request) {
  Account* const above = parent != nullptr ? &parent->account() : nullptr;
  if (parent != nullptr && parent->read().closed) {
    throw PoolClosedError("mempool: pool '" + parent->read().name + "' is closed: it takes no children.");
  }
  Account* const account = device.pools().open(std::move(name), above, isolated, from_limit(limit),
                                               from_limit(soft_limit), PoolUse{std::move(label), for_one_request});
  auto pool = std::make_shared<Pool>(device, account, std::move(parent));
  device.tell_growth();
  return pool;
}

// (bytes regained, handles moved, bytes moved, the largest free range afterwards in bytes)
py::tuple defragment(CachingAllocator& device) {
  Gathering done;
  std::size_t largest = 0;
  {
    const py::gil_scoped_release release;
    done = device.defragment();
    largest = device.arenas().largest_free();
  }
  return py::make_tuple(done.regained_bytes, done.moves, done.moved_bytes, largest);
}

[[noreturn]] void throw_os_error(int error, const std::string& path) {
  errno = error;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
  throw py::error_already_set();
}

void start_recording(CachingAllocator& device, const std::string& path) {
  bool started = false;
  int error = 0;
  {
    const py::gil_scoped_release release;
    started = device.observers().start_recording(path);
    error = errno;
  }
  if (!started) throw_os_error(error, path);
}

// (events written, errno of the first write that failed or 0)
py::tuple stop_recording(CachingAllocator& device) {
  TraceRecorder::Result result;
  {
    const py::gil_scoped_release release;
    result = device.observers().stop_recording();
  }
  return py::make_tuple(result.events, result.error);
}

// (id, parent's id or 0, name, isolated, closed, used bytes, peak bytes, limit, soft limit) of each pool that exists.
py::list pools(CachingAllocator& device) {
  std::vector<AccountRegistry::Listed> accounts;
  {
    const py::gil_scoped_release release;
    accounts = device.accounts().list();
  }
  py::list out;
  for (const auto& [account, parent] : accounts) {
    out.append(py::make_tuple(account.id, parent, account.name, account.isolated, account.closed,
                              account.blocks.bytes.current, account.blocks.bytes.peak, to_limit(account.limit),
                              to_limit(account.soft_limit)));
  }
  return out;
}

void add_pool(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<Pool, std::shared_ptr<Pool>>(m, "Pool", "An account: limit and statistics over an arena.")
      .def_property_readonly("name", [](const Pool& p) { return p.read().name; })
      .def_property_readonly("isolated", [](const Pool& p) { return p.account().isolated; })
      .def_property_readonly("closed", [](const Pool& p) { return p.read().closed; })
      .def_property(
          "limit", [](const Pool& p) { return to_limit(p.read().limit); },
          [](const Pool& p, Limit limit) { p.device().pools().set_limit(p.account(), from_limit(limit)); })
      .def_property(
          "soft_limit", [](const Pool& p) { return to_limit(p.read().soft_limit); },
          [](const Pool& p, Limit limit) { p.device().accounts().set_soft_limit(p.account(), from_limit(limit)); })
      .def("stats", &pool_stats)
      .def(
          "is_charged",
          [](const Pool& p, std::uintptr_t address) {
            return p.device().is_charged(p.account(), reinterpret_cast<const void*>(address));
          },
          "address"_a, "Whether the live block that begins there is charged to this very pool.")
      .def("reset_peaks", [](const Pool& p) { p.device().accounts().reset_peaks(p.account()); })
      .def(
          "held_bytes", [](const Pool& p) { return p.device().pools().held_bytes(p.account()); },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "trim", [](const Pool& p) { return p.device().trim_pool(p.account()); },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "reserve", [](const Pool& p, std::size_t bytes) { p.device().reserve(&p.account(), bytes); }, "bytes"_a,
          py::call_guard<py::gil_scoped_release>())
      .def_property_readonly(
          "reserved_bytes",
          [](const Pool& p) { return p.account().isolated ? p.device().reserved_for(&p.account()) : 0; })
      .def(
          "sleep", [](const Pool& p, bool keep) { p.device().sleep_pool(p.account(), keep); }, "keep"_a,
          py::call_guard<py::gil_scoped_release>())
      .def(
          "wake", [](const Pool& p) { p.device().wake_pool(p.account()); }, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("asleep",
                             [](const Pool& p) {
                               const py::gil_scoped_release release;
                               return p.device().pool_asleep(p.account());
                             })
      .def(
          "close", [](const Pool& p) { p.device().pools().close(p.account()); },
          py::call_guard<py::gil_scoped_release>());
}

void add_device(py::module_& m) {
  using namespace pybind11::literals;
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<CachingAllocator, std::unique_ptr<CachingAllocator, py::nodelete>>(m, "Device",
                                                                                "The allocator of one device.")
      .def_property_readonly("name", &CachingAllocator::device)
      .def_property_readonly("history_events", [](CachingAllocator& d) { return d.options().history_events; })
      .def("stats", &device_stats)
      .def(
          "metrics",
          [](CachingAllocator& d) {
            Metrics taken;
            {
              const py::gil_scoped_release release;
              taken = d.metrics(false);
            }
            return metrics_tuple(taken);
          },
          "((figures, refusals) of the device, {label: (figures, refusals)}).")
      .def("reset_peaks", &CachingAllocator::reset_peaks, Release())
      .def("reset_sums", &CachingAllocator::reset_sums, Release())
      .def("held_bytes", [](CachingAllocator& d) { return d.ledger().held(); })
      .def_property(
          "limit", [](CachingAllocator& d) { return to_limit(d.ledger().limit()); },
          [](CachingAllocator& d, Limit limit) {
            const py::gil_scoped_release release;
            d.set_limit(from_limit(limit));
          })
      .def_property(
          "soft_limit", [](CachingAllocator& d) { return to_limit(d.ledger().soft_limit()); },
          [](CachingAllocator& d, Limit limit) {
            const py::gil_scoped_release release;
            d.set_soft_limit(from_limit(limit));
          })
      .def(
          "trim", [](CachingAllocator& d, std::size_t target) { return d.trim(target); }, "target_bytes"_a, Release())
      .def(
          "reserve", [](CachingAllocator& d, std::size_t bytes) { d.reserve(nullptr, bytes); }, "bytes"_a, Release())
      .def_property_readonly("reserved_bytes", [](CachingAllocator& d) { return d.reserved_for(nullptr); })
      .def_property_readonly("reserve_option", [](CachingAllocator& d) { return d.options().reserve; })
      .def("open_pool", &open_pool, "name"_a, "parent"_a.none(true), "isolated"_a, "limit"_a, "soft_limit"_a,
           "metrics_label"_a = "", "for_one_request"_a = false)
      .def("pools", &pools)
      .def(
          "history_start", [](CachingAllocator& d, std::size_t most) { d.observers().start_history(most); },
          "most_events"_a)
      .def("history_stop", [](CachingAllocator& d) { d.observers().stop_history(); })
      .def("start_recording", &start_recording, "path"_a)
      .def("stop_recording", &stop_recording)
      .def(
          "mark_recording", [](CachingAllocator& d, std::uint64_t number) { d.observers().mark_recording(number); },
          "number"_a, Release())
      .def("defragment", &defragment)
      .def("check_invariants", &CachingAllocator::check_invariants, Release());
}

// The functions that make the allocators of the process.
void add_devices_of_process(py::module_& m) {
  using namespace pybind11::literals;
  m.def(
      "cpu_device",
      [](const std::string& conf) -> CachingAllocator& {
        Options options;
        parse_conf(options, conf, usable_memory_bytes());
        return cpu_device(options);
      },
      "conf"_a, py::return_value_policy::reference,
      "The CPU allocator. Made at the first call with the options in `conf` (\"key:value,key:value\").");
  m.def(
      "pinned_device",
      [](const std::string& conf) -> CachingAllocator& {
        Options options;
        parse_conf(options, conf, usable_memory_bytes());
        return pinned_device(options);
      },
      "conf"_a, py::return_value_policy::reference,
      "The allocator of pinned host memory. Made at the first call, as the CPU's.");
  m.def(
      "watch_outside",
      [](bool on, const std::string& root) {
        if (CachingAllocator* const device = cpu_device_if_made()) watch_outside(*device, on, root);
      },
      "on"_a, "root"_a = "", py::call_guard<py::gil_scoped_release>(),
      "Whether what others use counts in the CPU's limit; on: the limit is that of auto_limit().");
  m.def("is_watching_outside", &is_watching_outside);
  m.def(
      "auto_limit",
      [](const std::string& root) {
        const AutoLimit automatic = auto_limit(root);
        return py::make_tuple(automatic.capacity, automatic.limit);
      },
      "root"_a = "", "(what the process may use, the limit of held and outside bytes together).");
  m.def("pinned_device_if_made", &pinned_device_if_made, py::return_value_policy::reference);
  m.def(
      "cuda_device",
      [](int ordinal, const std::string& conf) -> CachingAllocator& {
        if (CachingAllocator* const made = cuda_device_if_made(ordinal)) return *made;
        Options options;
        parse_conf(options, conf, cuda_device_bytes(ordinal));
        return cuda_device(ordinal, options);
      },
      "ordinal"_a, "conf"_a, py::return_value_policy::reference,
      "The allocator of a CUDA device. Made at the first call, as the CPU's.");
  m.attr("max_cuda_devices") = kMaxCudaDevices;
  m.def("cuda_device_if_made", &cuda_device_if_made, "ordinal"_a, py::return_value_policy::reference,
        "The allocator of a CUDA device if it was made already, else None.");
  m.def("cuda_device_bytes", &cuda_device_bytes, "ordinal"_a, "The device's memory in bytes.");
  m.def(
      "cuda_problem",
      [] {
        std::string why;
        is_cuda_usable(why);
        return why;
      },
      "Why CUDA cannot be used; empty when it can.");
}

}  // namespace

void add_device_classes(py::module_& m) {
  add_pool(m);
  add_pool_scope(m);
  add_device(m);
  add_devices_of_process(m);
}

}  // namespace mempool::bindings
