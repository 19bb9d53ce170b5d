// Replays a trace, a recorded sequence of allocations, through an allocator of its own, and reports the memory and the
// time that it took.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/options.h"
#include "core/physical_memory.h"

namespace mempool {

struct TraceEvent {
  enum class Op : std::uint8_t { alloc, free, record_stream } op = Op::alloc;
  std::uint32_t id = 0;            // counts up from 0; a free or record_stream names the id of its alloc
  std::size_t bytes = 0;           // as asked; of an alloc
  std::uint32_t stream = 0;        // number of the stream; of an alloc or record_stream
  std::int64_t time_ns = kNoTime;  // since the trace began; kNoTime where it has no times
  static constexpr std::int64_t kNoTime = -1;
};

struct ReplayReport {
  std::size_t events = 0;
  std::size_t peak_live_bytes = 0;  // the most requested bytes live at once: no allocator can hold less than this
  std::size_t peak_held_bytes = 0;  // the most physical memory held at once
  std::size_t end_live_bytes = 0;   // requested bytes live at the end
  std::uint64_t commits = 0;
  std::uint64_t decommits = 0;
  std::uint64_t moves = 0;
  std::uint64_t moved_bytes = 0;
  std::uint64_t map_calls_in_last_half = 0;  // commits, decommits and moves after half of the events
  // Live and held bytes after each of about kSamples events, evenly spread.
  struct Sample {
    std::size_t event = 0;
    std::size_t live_bytes = 0;
    std::size_t held_bytes = 0;
  };
  static constexpr std::size_t kSamples = 256;
  std::vector<Sample> timeline;
  double seconds = 0;  // CPU time of all threads that played, without reading the trace and on_progress
};

// Memory decays by the clock of the trace, and not at all where the trace has no times. `threads` play the events in
// their order, some in a row each, so that most blocks are freed by another thread than had them. Precondition: each
// alloc has an id that is not live, each free and record_stream one that is. `on_progress` gets, on the calling thread,
// the number of events that are done, at most kSamples times; an exception from it ends the replay. Throws OutOfMemory
// when the trace does not fit; nothing stays allocated. Throws std::system_error where no thread can be started.
ReplayReport replay_trace(const std::vector<TraceEvent>& events, std::unique_ptr<PhysicalMemory> memory,
                          const Options& options, std::size_t threads = 1,
                          const std::function<void(std::size_t)>& on_progress = {});

}  // namespace mempool
