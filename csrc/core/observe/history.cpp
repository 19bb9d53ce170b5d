#include "core/observe/history.h"

#include <chrono>
#include <new>
#include <utility>

namespace mempool {
namespace {

std::int64_t now_us() {
  using std::chrono::duration_cast;
  using std::chrono::microseconds;
  return duration_cast<microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

void History::start(std::size_t most_events) {
  const std::lock_guard guard(mutex_);
  live_.clear();
  waiting_.clear();
  events_.clear();
  dropped_ = 0;
  most_events_ = most_events;
  enabled_.store(true, std::memory_order_relaxed);
}

void History::stop() {
  const std::lock_guard guard(mutex_);
  enabled_.store(false, std::memory_order_relaxed);
  live_.clear();
  waiting_.clear();
  events_.clear();
}

void History::append(const HistoryEvent& event) {
  if (most_events_ == 0) return;
  if (events_.size() == most_events_) {
    events_.pop_front();
    ++dropped_;
  }
  events_.push_back(event);
}

void History::on_alloc(const ObservedBlock& block, std::uint32_t stack) noexcept {
  const auto key = reinterpret_cast<std::uintptr_t>(block.address);
  const HistoryEvent event{HistoryEvent::Action::alloc,
                           key,
                           block.size.rounded,
                           block.size.asked,
                           stack,
                           block.account,
                           block.stream,
                           now_us()};
  const std::lock_guard guard(mutex_);
  if (!enabled()) return;
  try {
    live_.insert_or_assign(key, event);
    append(event);
  } catch (const std::bad_alloc&) {
    ++dropped_;  // a diagnostic never fails the allocation that it describes
  }
}

void History::on_free(const void* address, bool waits) noexcept {
  using Action = HistoryEvent::Action;
  move_on(address, waits ? Action::free_requested : Action::free, live_, waits ? &waiting_ : nullptr);
}

void History::on_completed(const void* address) noexcept {
  move_on(address, HistoryEvent::Action::free_completed, waiting_, nullptr);
}

void History::move_on(const void* address, HistoryEvent::Action action, Blocks& from, Blocks* to) noexcept {
  const auto key = reinterpret_cast<std::uintptr_t>(address);
  const std::lock_guard guard(mutex_);
  const auto found = from.find(key);
  if (found == from.end()) return;  // older than the recording
  HistoryEvent event = found->second;
  event.action = action;
  event.time_us = now_us();
  auto record = from.extract(found);
  try {
    if (to != nullptr) to->insert(std::move(record));
    append(event);
  } catch (const std::bad_alloc&) {
    ++dropped_;
  }
}

History::View History::view() const {
  const std::lock_guard guard(mutex_);
  return {live_, {events_.begin(), events_.end()}, dropped_};
}

}  // namespace mempool
