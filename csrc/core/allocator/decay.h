// Says which of the held memory goes back by itself: what demand has not come near for a time, decay_ms.
//
// It is told the figures of a moment at each tick, of whichever clock its caller has, and gives none of the memory back
// itself. One thread at a time uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "core/accounts/demand_window.h"

namespace mempool {

class Decay {
 public:
  // `granule_bytes`: the least that can go back. A `span_ms` of kNeverDecays switches it off.
  Decay(std::int64_t span_ms, std::size_t granule_bytes) noexcept
      : span_ms_(span_ms), granule_bytes_(granule_bytes), demand_(span_ms) {}

  bool is_on() const noexcept;
  std::int64_t tick_ms() const noexcept;

  // Of the time since the last tick: the most bytes that were needed, those in thread caches included, and how many of
  // these no thread has used: of whole pages, for a slab is needed for its other blocks, too. `now_ms` never goes back.
  // False without memory to remember it.
  bool tick(std::int64_t now_ms, std::size_t need, std::size_t unused) noexcept;
  // Whether blocks have waited in thread caches for all of the span: the caller recalls them. Asked once after a tick.
  // `unused`: bytes that blocks may keep there which no thread has used since the last tick.
  bool should_recall(std::size_t unused) noexcept;
  // How many bytes more than demand justifies are held, if they are worth a step. `overcounted`: what the need of the
  // span was taken for too high because of blocks that were then recalled.
  std::size_t surplus(std::size_t held, std::size_t overcounted) const noexcept;

  std::mutex& lock_for_fork() noexcept { return mutex_; }

 private:
  static constexpr std::int64_t kNotUnused = INT64_MIN;

  const std::int64_t span_ms_;
  const std::size_t granule_bytes_;
  std::mutex mutex_;  // guards the window against a fork
  DemandWindow demand_;
  std::int64_t now_ms_ = 0;
  std::int64_t unused_since_ms_ = kNotUnused;  // more than a granule waits in caches
};

}  // namespace mempool
