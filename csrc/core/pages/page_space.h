// The address space of one heap and the memory in it: spans over segments, and the handles that are mapped under them.
// What changes both is here and in Filling; what to take, to move and to give back is decided in PageHeap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/accounts/ledger.h"
#include "core/pages/handle_map.h"
#include "core/pages/segment_list.h"
#include "core/pages/stale_ranges.h"
#include "core/physical_memory.h"
#include "core/streams/stream_clock.h"

namespace mempool {

class PageSpace {
 public:
  // `reserved_in`: of its family. `is_movable`: else no memory in it ever gets another address.
  PageSpace(PhysicalMemory& memory_in, StreamClock& clock_in, Ledger::Reserved& reserved_in, Arena* arena,
            std::size_t segment_bytes, bool is_movable_in)
      : memory(memory_in),
        clock(clock_in),
        reserved(reserved_in),
        capabilities(memory.capabilities()),
        granule(memory.granule_bytes()),
        is_movable(is_movable_in),
        segments(memory, arena, segment_bytes),
        handles(memory),
        stale(memory, clock) {}
  PageSpace(const PageSpace&) = delete;
  PageSpace& operator=(const PageSpace&) = delete;

  PhysicalMemory& memory;
  StreamClock& clock;          // of the stream that uses the memory
  Ledger::Reserved& reserved;  // by the ledger's functions alone
  const PhysicalMemory::Capabilities capabilities;
  const std::size_t granule;
  const bool is_movable;

  SegmentList segments;
  HandleMap handles;
  StaleRanges stale;

  const FreeRanges& free() const noexcept { return segments.free(); }

  // Something became free at this moment.
  StreamClock::Moment note_free() noexcept { return latest_free_ = clock.now(); }
  // From here on it becomes known when what is free now is idle. Without an effect when nothing was freed since.
  void mark() noexcept { clock.mark(latest_free_); }
  // Whether memory that is free since `moment` may go to `receiver` now, or after a wait.
  bool may_lend(StreamClock::Moment moment, const PageSpace& receiver, bool may_wait) noexcept;

  // The memory of a part of an indexed free span has moved away.
  void leave(Span* span, std::uintptr_t start, std::size_t bytes) noexcept;
  // Ends what moves have left behind, as far as work on the device allows.
  void sweep(bool may_wait) noexcept;

  // Gives back whole handles inside an indexed free span, from its high end down, until `bytes` are reached, and never
  // more than `most`. Returns the bytes given back.
  std::size_t release_from(Span* span, std::size_t bytes, std::size_t most, Ledger& ledger) noexcept;

 private:
  StreamClock::Moment latest_free_ = StreamClock::kAlways;
};

}  // namespace mempool
