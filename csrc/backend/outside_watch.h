// Limits that move with what others use of the machine (`limit="auto"`): the process itself beside mempool, the rest of
// its control groups, and the machine. What they use counts in the device's limit, as Ledger::set_outside() has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator/caching_allocator.h"

namespace mempool {

// Of the CPU's memory. `capacity` stays below what the kernel allows by a margin, for what comes between two looks.
struct AutoLimit {
  std::size_t capacity = 0;  // bytes that the process may use, all in all
  std::size_t limit = 0;     // of held and outside bytes together
};
AutoLimit auto_limit(const std::string& root = "");

// What others use, from readings of the kernel that change all the time. A rise counts at once; a fall once it has
// lasted, so that the limit does not swing with each temporary file or request.
class OutsideLevel {
 public:
  static constexpr std::int64_t kFallMs = 2000;
  // The level after a reading at the moment `now_ms`: the highest reading of the last kFallMs.
  std::size_t add(std::int64_t now_ms, std::size_t bytes);

 private:
  std::vector<std::pair<std::int64_t, std::size_t>> readings_;  // falling, each later than the one before
};

// Bytes of these ranges that are in memory: what was committed and never touched is not. Each is [start, bytes).
std::size_t resident_bytes(const std::vector<std::pair<std::uintptr_t, std::size_t>>& ranges) noexcept;

// Looks at the machine for one device. Not thread-safe.
class OutsideWatch {
 public:
  OutsideWatch(CachingAllocator& device, std::size_t capacity, std::string root);

  // Looks now, and counts it: in the device's limit or, where that is shared, in the limit of all. Returns what counts
  // in the device's alone.
  std::size_t look();
  // Free memory goes back as far as held and outside bytes pass the limit. Returns what passes it still, once.
  std::size_t relieve_limit();
  // Every kTickMs: counts that, and gives free memory back where the limit needs it or tasks wait for memory. Returns
  // the bytes that the pressure callbacks are to be called for then; 0 for none.
  std::size_t tick(std::int64_t now_ms);

  std::size_t capacity() const noexcept { return capacity_; }
  const std::string& root() const noexcept { return root_; }

  static constexpr std::int64_t kTickMs = 250;

 private:
  std::size_t resident(std::int64_t now_ms, bool fresh);
  // What others use at this moment: an upper bound, as far as memory was touched since it was last looked at.
  std::size_t outside_beside(std::size_t resident) const;
  // `fresh`: looks again, unless that takes more than a tenth of all time.
  std::size_t resident_of_all(std::int64_t now_ms, bool fresh);
  void count(std::size_t outside);
  std::size_t relieve_stall(std::int64_t now_ms);

  CachingAllocator& device_;
  const std::size_t capacity_;
  const std::string root_;
  OutsideLevel level_;
  // The last look at what is resident, and when the next one may be.
  std::size_t resident_ = 0;
  std::int64_t decommitted_ = 0;
  std::int64_t looked_ms_ = INT64_MIN / 2;
  std::int64_t took_ms_ = 0;
  bool is_over_ = false;  // since the callbacks were called
  std::optional<std::uint64_t> stall_us_;
  std::int64_t stall_read_ms_ = 0;
  int stalled_times_ = 0;  // readings in turn
};

// The watch of the CPU's allocator. On: the device gets the limit of auto_limit(). Off: what others use does not count.
void watch_outside(CachingAllocator& cpu, bool on, const std::string& root = "");
bool is_watching_outside() noexcept;
// From the background thread, as often as it likes.
void tick_outside_watch(std::int64_t now_ms) noexcept;
// For a forked child, in which another thread may have been in the midst of it.
void restart_outside_watch() noexcept;

}  // namespace mempool
