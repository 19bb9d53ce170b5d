#include "core/stream_clock.h"

#include <algorithm>
#include <mutex>
#include <new>

namespace mempool {
namespace {

using Guard = std::lock_guard<AdaptiveMutex>;

}  // namespace

StreamClock::~StreamClock() {
  for (const Mark& mark : marks_) events_->discard(mark.event);
}

bool StreamClock::mark(Moment moment) noexcept {
  if (events_ == nullptr || moment <= marked_.load(std::memory_order_acquire)) return true;
  const Guard guard(mutex_);
  return mark_locked(moment);
}

// The count goes on before the event is recorded: who has read the number of this moment has asked for his work before,
// and the event covers it.
bool StreamClock::mark_locked(Moment moment) noexcept {
  if (moment <= marked_.load(std::memory_order_relaxed)) return true;
  const Moment number = next_.fetch_add(1);
  StreamEvents::Event event = 0;
  if (!events_->record(stream_, event)) return false;
  try {
    marks_.push_back({number, event});
  } catch (const std::bad_alloc&) {
    events_->discard(event);
    return false;
  }
  marked_.store(number, std::memory_order_release);
  return true;
}

void StreamClock::pass_front() noexcept {
  const Mark front = marks_.front();
  marks_.pop_front();
  passed_.store(front.moment, std::memory_order_release);
  if (waiting_ > 0) {
    try {
      unused_.push_back(front.event);
      return;
    } catch (const std::bad_alloc&) {  // who waits for it may then wait for later work as well
    }
  }
  events_->discard(front.event);
}

void StreamClock::poll_locked() noexcept {
  while (!marks_.empty()) {
    const StreamEvents::Progress progress = events_->query(marks_.front().event);
    if (progress == StreamEvents::Progress::pending) return;
    if (progress == StreamEvents::Progress::done) {
      pass_front();
      continue;
    }
    // A later event says it, too; without one it must be asked for again.
    events_->discard(marks_.front().event);
    marks_.pop_front();
    if (marks_.empty()) marked_.store(passed_.load(std::memory_order_relaxed), std::memory_order_release);
  }
}

void StreamClock::poll() noexcept {
  if (events_ == nullptr || passed_.load(std::memory_order_acquire) == marked_.load(std::memory_order_acquire)) return;
  const Guard guard(mutex_);
  poll_locked();
}

bool StreamClock::wait(Moment moment) noexcept {
  if (events_ == nullptr || moment <= passed_.load(std::memory_order_acquire)) return true;
  std::unique_lock lock(mutex_);
  if (!mark_locked(moment)) return false;
  while (moment > passed_.load(std::memory_order_relaxed)) {
    // The stream works in order: the first event that is late enough says it for all before it.
    const auto found = std::find_if(marks_.begin(), marks_.end(), [&](const Mark& m) { return m.moment >= moment; });
    if (found == marks_.end()) return false;  // its event was lost meanwhile
    const Mark mark = *found;
    ++waiting_;
    lock.unlock();
    events_->wait(mark.event);
    lock.lock();
    if (--waiting_ == 0) {
      for (; !unused_.empty(); unused_.pop_front()) events_->discard(unused_.front());
    }
    while (!marks_.empty() && marks_.front().moment <= mark.moment) pass_front();
  }
  return true;
}

StreamClock& StreamClocks::of(StreamId stream) {
  const Guard guard(mutex_);
  const auto found = std::find_if(clocks_.begin(), clocks_.end(), [&](const auto& c) { return c->stream() == stream; });
  if (found != clocks_.end()) return **found;
  return *clocks_.emplace_back(std::make_unique<StreamClock>(events_, stream));
}

bool StreamClocks::wait_for_all() noexcept {
  bool all = true;
  for (std::size_t i = 0;; ++i) {
    StreamClock* clock = nullptr;
    {
      const Guard guard(mutex_);
      if (i == clocks_.size()) return all;
      clock = clocks_[i].get();
    }
    all &= clock->wait(clock->now());
  }
}

}  // namespace mempool
