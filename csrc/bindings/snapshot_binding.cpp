#include "snapshot_binding.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"

namespace py = pybind11;

namespace mempool::bindings {
namespace {

// The heap and the recorded events of a device at one moment. Python reads them later, and on any thread: that takes
// many times as long.
struct TakenSnapshot {
  // The history comes first: an address may belong to another block by the time that the heap is read.
  explicit TakenSnapshot(CachingAllocator& device)
      : history(device.observers().history().view()),
        snapshot(device.snapshot()),
        free_range_bytes(device.arenas().free_bytes()) {}

  const History::View history;
  const Snapshot snapshot;
  const std::size_t free_range_bytes;
};

std::unique_ptr<TakenSnapshot> take(CachingAllocator& device) { return std::make_unique<TakenSnapshot>(device); }

// Releases the interpreter's lock now and then during a long loop, so that other threads of Python may run.
class Turns {
 public:
  void pass() {
    if (++steps_ % 1024 == 0) const py::gil_scoped_release release;
  }

 private:
  std::size_t steps_ = 0;
};

// ([(address, bytes, arena, arena number, stream, (allocated, active, requested, is large),
//    [(address, bytes, requested, account, live, waiting), ...]), ...],
// {account: name}), with one entry for each contiguous backed range.
py::tuple segments(const TakenSnapshot& whole) {
  const Snapshot& taken = whole.snapshot;
  py::list segments;
  Turns turns;
  for (const SnapshotSegment& segment : taken.segments) {
    py::list blocks;
    for (const SnapshotBlock& block : taken.blocks_of(segment)) {
      turns.pass();
      blocks.append(
          py::make_tuple(block.address, block.bytes, block.requested, block.account, block.live, block.waiting));
    }
    const std::string arena = segment.asleep ? segment.arena + " (asleep)" : segment.arena;
    segments.append(py::make_tuple(
        segment.address, segment.bytes, arena, segment.arena_number, segment.stream,
        py::make_tuple(segment.sums.allocated, segment.sums.active, segment.sums.requested, segment.sums.is_large),
        blocks));
  }
  return py::make_tuple(segments, taken.pools);
}

const char* name_of(HistoryEvent::Action action) {
  switch (action) {
    case HistoryEvent::Action::alloc:
      return "alloc";
    case HistoryEvent::Action::free:
      return "free";
    case HistoryEvent::Action::free_requested:
      return "free_requested";
    case HistoryEvent::Action::free_completed:
      return "free_completed";
  }
  return "";
}

py::tuple to_tuple(const HistoryEvent& event) {
  return py::make_tuple(name_of(event.action), event.address, event.bytes, event.requested, event.stack, event.account,
                        event.time_us, event.stream);
}

// (live events by address, events oldest first, number of dropped events); an event is
// (action, address, bytes, requested, stack, account, time_us, stream).
py::tuple history(const TakenSnapshot& whole) {
  const History::View& view = whole.history;
  py::dict live;
  Turns turns;
  for (const auto& [address, event] : view.live) {
    turns.pass();
    live[py::int_(address)] = to_tuple(event);
  }
  py::list events;
  for (const HistoryEvent& event : view.events) {
    turns.pass();
    events.append(to_tuple(event));
  }
  return py::make_tuple(live, events, view.dropped);
}

// (bytes of live blocks, held bytes, those in free ranges, [(pool, bytes of its own live blocks)], the largest first)
py::tuple summary(const TakenSnapshot& whole, std::size_t most_pools) {
  const Snapshot& taken = whole.snapshot;
  std::map<std::uint32_t, std::size_t> by_account;
  std::size_t held = 0;
  std::size_t live = 0;
  for (const SnapshotSegment& segment : taken.segments) held += segment.asleep ? 0 : segment.bytes;
  for (const SnapshotBlock& block : taken.blocks) {
    if (!block.live) continue;
    live += block.bytes;
    by_account[block.account] += block.bytes;
  }
  std::map<std::string, std::size_t> by_name;
  for (const auto& [account, bytes] : by_account) {
    const auto name = taken.pools.find(account);
    by_name[name != taken.pools.end() ? name->second : "default"] += bytes;
  }
  std::vector<std::pair<std::string, std::size_t>> largest(by_name.begin(), by_name.end());
  std::sort(largest.begin(), largest.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  largest.resize(std::min(largest.size(), most_pools));
  return py::make_tuple(live, held, whole.free_range_bytes, largest);
}

}  // namespace

void add_snapshots(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<TakenSnapshot>(m, "TakenSnapshot", "A device's heap and recorded events at one moment.")
      .def("segments", &segments)
      .def("history", &history)
      .def("summary", &summary, "most_pools"_a);
  m.def("take_snapshot", &take, "device"_a, py::call_guard<py::gil_scoped_release>());
}

}  // namespace mempool::bindings
