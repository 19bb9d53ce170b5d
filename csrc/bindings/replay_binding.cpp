// The function _core.replay: it takes the events of a trace as buffers, and returns the report as a dictionary.
#include "replay_binding.h"

#include <memory>
#include <string>
#include <vector>

#include "backend/fake_memory.h"
#include "backend/host_memory.h"
#include "common/errors.h"
#include "replay/trace_replay.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

struct Columns {
  py::buffer_info ops;
  py::buffer_info ids;
  py::buffer_info bytes;
  py::buffer_info streams;
  py::buffer_info times;
};

const std::int64_t* column(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != sizeof(std::int64_t)) {
    throw ConfigError("a column of a trace must be a buffer of 64-bit integers.");
  }
  return static_cast<const std::int64_t*>(info.ptr);
}

// What a CUDA device is to the allocator: handles that stay whole, and streams, whose work is always done here.
constexpr FakeMemory::Settings kFakeDevice{
    .personality = FakeMemory::Personality::device, .accessible = false, .has_streams = true};

// What pinned memory is to it: registrations as long as what asks for them.
constexpr FakeMemory::Settings kFakePinned{
    .personality = FakeMemory::Personality::exact, .granule_bytes = 4096, .accessible = false};

std::unique_ptr<PhysicalMemory> make_backend(const std::string& name, std::size_t capacity) {
  if (name == "host") return std::make_unique<HostMemory>(true);
  FakeMemory::Settings settings{.accessible = false};
  if (name == "fake-device") {
    settings = kFakeDevice;
  } else if (name == "fake-pinned") {
    settings = kFakePinned;
  } else if (name != "fake") {
    throw ConfigError("unknown backend '" + name + "': it is 'fake', 'fake-device', 'fake-pinned' or 'host'.");
  }
  if (capacity > 0) settings.capacity_bytes = capacity;
  return std::make_unique<FakeMemory>(settings);
}

py::dict to_dict(const ReplayReport& report) {
  py::dict out;
  out["events"] = report.events;
  out["peak_live_bytes"] = report.peak_live_bytes;
  out["peak_held_bytes"] = report.peak_held_bytes;
  out["end_live_bytes"] = report.end_live_bytes;
  out["commits"] = report.commits;
  out["decommits"] = report.decommits;
  out["moves"] = report.moves;
  out["moved_bytes"] = report.moved_bytes;
  out["map_calls_in_last_half"] = report.map_calls_in_last_half;
  py::list timeline;
  for (const ReplayReport::Sample& sample : report.timeline) {
    timeline.append(py::make_tuple(sample.event, sample.live_bytes, sample.held_bytes));
  }
  out["timeline"] = timeline;
  out["seconds"] = report.seconds;
  return out;
}

TraceEvent::Op op_of(std::int64_t number) {
  switch (number) {
    case 0:
      return TraceEvent::Op::free;
    case 1:
      return TraceEvent::Op::alloc;
    default:
      return TraceEvent::Op::record_stream;
  }
}

// `ops`: 0 free, 1 alloc, 2 record_stream. `capacity`: the bytes of a fake backend; 0 for no limit. `threads`: at
// least 1. `progress` is called with the number of events that are done; there a pending signal, the user's interrupt
// for one, ends the replay.
py::dict replay(const py::buffer& ops, const py::buffer& ids, const py::buffer& bytes, const py::buffer& streams,
                const py::buffer& times, const std::string& backend, const std::string& conf, std::size_t capacity,
                std::size_t threads, const py::object& progress) {
  const Columns columns{ops.request(), ids.request(), bytes.request(), streams.request(), times.request()};
  const std::int64_t* const op_column = column(columns.ops);
  const std::int64_t* const id_column = column(columns.ids);
  const std::int64_t* const byte_column = column(columns.bytes);
  const std::int64_t* const stream_column = column(columns.streams);
  const std::int64_t* const time_column = column(columns.times);
  std::vector<TraceEvent> events(static_cast<std::size_t>(columns.ops.size));
  for (std::size_t i = 0; i < events.size(); ++i) {
    events[i] = {op_of(op_column[i]), static_cast<std::uint32_t>(id_column[i]),
                 static_cast<std::size_t>(byte_column[i]), static_cast<std::uint32_t>(stream_column[i]),
                 time_column[i]};
  }
  Options options;
  parse_conf(options, conf, 0);
  ReplayReport report;
  {
    const py::gil_scoped_release release;
    report = replay_trace(events, make_backend(backend, capacity), options, threads, [&progress](std::size_t done) {
      const py::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress.is_none()) progress(done);
    });
  }
  return to_dict(report);
}

}  // namespace

void add_replay(py::module_& m) {
  using namespace pybind11::literals;
  m.def("replay", &replay, "ops"_a, "ids"_a, "bytes"_a, "streams"_a, "times"_a, "backend"_a, "conf"_a = "",
        "capacity"_a = 0, "threads"_a = 1, "progress"_a = py::none());
}

}  // namespace mempool::bindings
