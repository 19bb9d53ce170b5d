// Ranges that memory has moved away from, but which work on the device may still use: where a backend can map a handle
// at two addresses at once, the old mapping stays until the work of its stream has come so far.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>

#include "core/pages/span.h"
#include "core/physical_memory.h"
#include "core/streams/stream_clock.h"

namespace mempool {

class StaleRanges {
 public:
  StaleRanges(PhysicalMemory& memory, StreamClock& clock) noexcept
      : memory_(memory), clock_(clock), can_alias_(memory.capabilities().can_alias) {}

  // Before a move away from `start`: room for the range. Else false. Nothing to do where a move leaves nothing behind.
  bool reserve(std::uintptr_t start) noexcept;
  void cancel(std::uintptr_t start) noexcept { ranges_.erase(start); }
  // A span in state `stale`, for which room is reserved.
  void set(Span* span) noexcept;

  bool empty() const noexcept { return ranges_.empty(); }
  std::size_t count() const noexcept { return ranges_.size(); }

  // Unmaps the ranges whose moment has passed, as of the clock's last poll: neighbours in one call. Calls
  // on_unmapped(span) for each. `may_wait`: for the moments of others, too.
  template <typename Action>
  void unmap_idle(bool may_wait, Action on_unmapped) noexcept {
    const auto has_passed = [&](const Span& span) {
      return clock_.has_passed(span.moment) || (may_wait && clock_.wait(span.moment));
    };
    for (auto it = ranges_.begin(); it != ranges_.end();) {
      if (!has_passed(*it->second)) {
        ++it;
        continue;
      }
      const Span* last = it->second;
      std::size_t bytes = last->bytes;
      auto end = std::next(it);
      for (; end != ranges_.end() && end->second == last->next && has_passed(*end->second); ++end) {
        last = end->second;
        bytes += last->bytes;
      }
      if (!memory_.unmap(it->second->address(), bytes)) {
        it = end;
        continue;
      }
      for (; it != end; it = ranges_.erase(it)) on_unmapped(it->second);
    }
  }

 private:
  PhysicalMemory& memory_;
  StreamClock& clock_;
  const bool can_alias_;
  std::map<std::uintptr_t, Span*> ranges_;  // by address; nullptr while a move is under way
};

}  // namespace mempool
