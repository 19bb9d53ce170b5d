// What record_history(True) keeps: the stack and time of each live block, and the last events. Off by default.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/observe/block_listener.h"

namespace mempool {

struct HistoryEvent {
  enum class Action : std::uint8_t {
    alloc,
    free,            // requested and completed at once
    free_requested,  // other streams use the block still
    free_completed,  // these have caught up
  } action = Action::alloc;
  std::uintptr_t address = 0;
  std::size_t bytes = 0;  // rounded
  std::size_t requested = 0;
  std::uint32_t stack = 0;  // id from Hooks::capture_stack
  std::uint32_t account = 0;
  StreamId stream = 0;
  std::int64_t time_us = 0;  // microseconds since the epoch
};

class History {
 public:
  bool enabled() const noexcept { return enabled_.load(std::memory_order_relaxed); }
  // Starting anew forgets what was kept.
  void start(std::size_t most_events);
  void stop();

  void on_alloc(const ObservedBlock& block, std::uint32_t stack) noexcept;
  // Both before the block can be handed out again. `waits`: on_completed() comes later.
  void on_free(const void* address, bool waits) noexcept;
  void on_completed(const void* address) noexcept;

  struct View {
    std::unordered_map<std::uintptr_t, HistoryEvent> live;
    std::vector<HistoryEvent> events;  // oldest first
    std::size_t dropped = 0;           // events that are no longer kept
  };
  View view() const;

  std::mutex& lock_for_fork() { return mutex_; }

 private:
  using Blocks = std::unordered_map<std::uintptr_t, HistoryEvent>;  // by address: how each was allocated

  void append(const HistoryEvent& event);
  void move_on(const void* address, HistoryEvent::Action action, Blocks& from, Blocks* to) noexcept;

  std::atomic<bool> enabled_{false};
  mutable std::mutex mutex_;
  std::size_t most_events_ = 0;
  std::size_t dropped_ = 0;
  Blocks live_;
  Blocks waiting_;  // freed, for other streams
  std::deque<HistoryEvent> events_;
};

}  // namespace mempool
