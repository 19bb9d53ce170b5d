#include "replay/trace_replay.h"

#include <algorithm>
#include <utility>

#include "common/expects.h"
#include "core/allocator/caching_allocator.h"
#include "replay/turns.h"

namespace mempool {
namespace {

// The live blocks of a replay, by id. Its end frees them, also after an error.
class LiveBlocks {
 public:
  LiveBlocks(CachingAllocator& allocator, std::size_t count) : allocator_(allocator), blocks_(count) {}
  LiveBlocks(const LiveBlocks&) = delete;
  LiveBlocks& operator=(const LiveBlocks&) = delete;
  ~LiveBlocks() {
    for (void* block : blocks_) allocator_.deallocate(block);
  }
  void apply(const TraceEvent& event) {
    switch (event.op) {
      case TraceEvent::Op::alloc:
        MEMPOOL_EXPECTS(blocks_[event.id] == nullptr);
        blocks_[event.id] = allocator_.allocate(event.bytes, event.stream);
        break;
      case TraceEvent::Op::free:
        MEMPOOL_EXPECTS(event.id < blocks_.size());
        allocator_.deallocate(std::exchange(blocks_[event.id], nullptr));
        break;
      case TraceEvent::Op::record_stream:
        allocator_.add_use(blocks_[event.id], event.stream);
        break;
    }
  }

 private:
  CachingAllocator& allocator_;
  std::vector<void*> blocks_;
};

std::uint64_t map_calls(const DeviceStats& stats) {
  return static_cast<std::uint64_t>(stats.commits + stats.decommits + stats.moves);
}

// Fills in the figures that follow from the trace alone: live bytes over time, and their peak.
void add_live_bytes(const std::vector<TraceEvent>& events, ReplayReport& report) {
  std::vector<std::size_t> sizes;
  std::size_t live = 0;
  const std::size_t stride = std::max<std::size_t>(1, events.size() / ReplayReport::kSamples);
  for (std::size_t i = 0; i < events.size(); ++i) {
    const TraceEvent& event = events[i];
    if (event.op == TraceEvent::Op::alloc) {
      sizes.resize(std::max<std::size_t>(sizes.size(), event.id + 1));
      sizes[event.id] = event.bytes;
      live += event.bytes;
      report.peak_live_bytes = std::max(report.peak_live_bytes, live);
    } else if (event.op == TraceEvent::Op::free) {
      MEMPOOL_EXPECTS(event.id < sizes.size() && sizes[event.id] <= live);
      live -= sizes[event.id];
    }
    if ((i + 1) % stride == 0) report.timeline.push_back({i, live, 0});
  }
  report.end_live_bytes = live;
}

// Calls decay() as the clock of the trace advances.
class TraceClock {
 public:
  explicit TraceClock(CachingAllocator& allocator) : allocator_(allocator), tick_ms_(allocator.decay_tick_ms()) {}
  void advance(std::int64_t time_ns) {
    // After that many ticks without an event no memory is left to decay, so the clock may jump.
    constexpr std::int64_t kMostTicks = 1 << 16;
    const std::int64_t most_ms = kMostTicks * tick_ms_ + 2 * std::max<std::int64_t>(0, allocator_.options().decay_ms);
    next_ms_ = std::max(next_ms_, time_ns / 1'000'000 - most_ms);
    for (const std::int64_t now_ms = time_ns / 1'000'000; next_ms_ <= now_ms; next_ms_ += tick_ms_) {
      allocator_.decay(next_ms_);
    }
  }

 private:
  CachingAllocator& allocator_;
  const std::int64_t tick_ms_;
  std::int64_t next_ms_ = 0;
};

}  // namespace

ReplayReport replay_trace(const std::vector<TraceEvent>& events, std::unique_ptr<PhysicalMemory> memory,
                          const Options& options, std::size_t threads,
                          const std::function<void(std::size_t)>& on_progress) {
  ReplayReport report;
  report.events = events.size();
  add_live_bytes(events, report);
  std::size_t ids = 0;
  for (const TraceEvent& event : events) ids = std::max<std::size_t>(ids, event.id + 1);
  CachingAllocator allocator("replay", std::move(memory), options);
  LiveBlocks live(allocator, ids);
  TraceClock clock(allocator);
  const std::size_t half = events.size() / 2;
  std::uint64_t calls_at_half = 0;
  auto sample = report.timeline.begin();
  auto told = sample;
  double telling = 0;
  const auto tell = [&](std::size_t done) {
    const double before = thread_cpu_seconds();
    on_progress(done);
    telling += thread_cpu_seconds() - before;
    told = sample;
  };
  report.seconds = do_in_turns(events.size(), threads, [&](std::size_t first, std::size_t last, std::size_t thread) {
    for (std::size_t i = first; i < last; ++i) {
      if (i == half) calls_at_half = map_calls(allocator.ledger().read_stats());
      if (events[i].time_ns != TraceEvent::kNoTime) clock.advance(events[i].time_ns);
      live.apply(events[i]);
      if (sample != report.timeline.end() && sample->event == i) (sample++)->held_bytes = allocator.ledger().held();
    }
    if (thread == 0 && told != sample && on_progress) tell(last);
  });
  report.seconds -= telling;
  const DeviceStats stats = allocator.stats();
  report.peak_held_bytes = static_cast<std::size_t>(stats.reserved_bytes.all.peak);
  report.commits = static_cast<std::uint64_t>(stats.commits);
  report.decommits = static_cast<std::uint64_t>(stats.decommits);
  report.moves = static_cast<std::uint64_t>(stats.moves);
  report.moved_bytes = static_cast<std::uint64_t>(stats.moved_bytes);
  report.map_calls_in_last_half = map_calls(stats) - calls_at_half;
  return report;
}

}  // namespace mempool
