#include "core/streams/stream_clock.h"

#include <algorithm>
#include <mutex>
#include <new>

#include "common/expects.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<AdaptiveMutex>;

// Events that a wait loses to captures before it gives up. Not measured.
constexpr int kMostLost = 8;

}  // namespace

StreamClock::~StreamClock() {
  for (const Mark& mark : marks_) events_->discard(mark.event);
}

bool StreamClock::mark(Moment moment) noexcept {
  if (events_ == nullptr || moment <= marked_.load(std::memory_order_acquire)) return true;
  const Guard guard(mutex_);
  return mark_locked(moment) == StreamEvents::Recorded::yes;
}

// The count advances before the event is recorded: a thread that has read this moment's number has submitted its work
// before, so the event covers that work.
StreamEvents::Recorded StreamClock::mark_locked(Moment moment) noexcept {
  using Recorded = StreamEvents::Recorded;
  if (moment <= marked_.load(std::memory_order_relaxed)) return Recorded::yes;
  const Moment number = next_.fetch_add(1);
  StreamEvents::Event event = 0;
  const Recorded recorded = events_->record(stream_, event);
  is_gone_.store(recorded == Recorded::never, std::memory_order_relaxed);
  if (recorded != Recorded::yes) return recorded;
  try {
    marks_.push_back({number, event});
  } catch (const std::bad_alloc&) {
    events_->discard(event);
    return Recorded::unavailable;
  }
  marked_.store(number, std::memory_order_release);
  return Recorded::yes;
}

// Ends a mark. Its event is discarded (and so used again) only when no thread waits for it.
void StreamClock::forget(std::deque<Mark>::iterator mark) noexcept {
  const StreamEvents::Event event = mark->event;
  marks_.erase(mark);
  if (waiting_ > 0) {
    try {
      unused_.push_back(event);
      return;
    } catch (const std::bad_alloc&) {  // a thread that waits for it may then wait for later work as well
    }
  }
  events_->discard(event);
}

// All moments up to this one have passed.
void StreamClock::pass(Moment moment) noexcept {
  while (!marks_.empty() && marks_.front().moment <= moment) forget(marks_.begin());
  if (moment > passed_.load(std::memory_order_relaxed)) passed_.store(moment, std::memory_order_release);
  if (moment > marked_.load(std::memory_order_relaxed)) marked_.store(moment, std::memory_order_release);
}

// The event of this moment was lost. A later mark says it, too; without one the moment must be marked again.
void StreamClock::lose(Moment moment) noexcept {
  const auto same = [&](const Mark& mark) { return mark.moment == moment; };
  if (const auto found = std::find_if(marks_.begin(), marks_.end(), same); found != marks_.end()) forget(found);
  const Moment last = marks_.empty() ? passed_.load(std::memory_order_relaxed) : marks_.back().moment;
  marked_.store(last, std::memory_order_release);
}

void StreamClock::poll_locked() noexcept {
  while (!marks_.empty()) {
    const Moment moment = marks_.front().moment;
    const StreamEvents::Progress progress = events_->query(marks_.front().event);
    if (progress == StreamEvents::Progress::done) {
      pass(moment);
    } else if (progress == StreamEvents::Progress::lost) {
      lose(moment);
    } else {
      return;
    }
  }
}

void StreamClock::poll() noexcept {
  if (events_ == nullptr || passed_.load(std::memory_order_acquire) == marked_.load(std::memory_order_acquire)) return;
  const Guard guard(mutex_);
  poll_locked();
}

// The lock is let go meanwhile. The count went on before, as for an event.
StreamClock::Obstacle StreamClock::wait_for_device_until(Moment moment,
                                                         std::unique_lock<AdaptiveMutex>& lock) noexcept {
  lock.unlock();
  if (const Obstacle obstacle = events_->wait_for_device(); obstacle != Obstacle::none) return obstacle;
  lock.lock();
  pass(moment);
  is_gone_.store(false, std::memory_order_relaxed);
  return Obstacle::none;
}

StreamClock::Obstacle StreamClock::await(Moment moment) noexcept {
  if (events_ == nullptr || moment <= passed_.load(std::memory_order_acquire)) return Obstacle::none;
  std::unique_lock lock(mutex_);
  for (int lost = 0; moment > passed_.load(std::memory_order_relaxed);) {
    const StreamEvents::Recorded recorded = mark_locked(moment);
    if (recorded == StreamEvents::Recorded::never) return wait_for_device_until(moment, lock);
    if (recorded == StreamEvents::Recorded::captured) return Obstacle::capture;
    if (recorded == StreamEvents::Recorded::unavailable) return Obstacle::unavailable;
    // The stream works in order: the first event that is late enough says it for all before it.
    const auto found = std::find_if(marks_.begin(), marks_.end(), [&](const Mark& m) { return m.moment >= moment; });
    if (found == marks_.end()) return Obstacle::capture;  // its event was lost meanwhile
    const Mark mark = *found;
    ++waiting_;
    lock.unlock();
    const StreamEvents::Progress progress = events_->wait(mark.event);
    lock.lock();
    MEMPOOL_EXPECTS(progress != StreamEvents::Progress::pending);
    if (progress == StreamEvents::Progress::done) pass(mark.moment);
    if (progress == StreamEvents::Progress::lost) lose(mark.moment);
    if (--waiting_ == 0) {
      for (; !unused_.empty(); unused_.pop_front()) events_->discard(unused_.front());
    }
    if (progress == StreamEvents::Progress::failed) return Obstacle::failure;
    if (progress == StreamEvents::Progress::lost && ++lost > kMostLost) return Obstacle::capture;
  }
  return Obstacle::none;
}

StreamClock& StreamClocks::of(StreamId stream) {
  const Guard guard(mutex_);
  const auto found = std::find_if(clocks_.begin(), clocks_.end(), [&](const auto& c) { return c->stream() == stream; });
  if (found != clocks_.end()) return **found;
  return *clocks_.emplace_back(std::make_unique<StreamClock>(events_, stream));
}

void StreamClocks::lock_for_fork() noexcept {
  mutex_.lock();
  for (const auto& clock : clocks_) clock->lock_for_fork().lock();
}

void StreamClocks::unlock_after_fork() noexcept {
  for (const auto& clock : clocks_) clock->lock_for_fork().unlock();
  mutex_.unlock();
}

StreamClock* StreamClocks::at(std::size_t index) noexcept {
  const Guard guard(mutex_);
  return index < clocks_.size() ? clocks_[index].get() : nullptr;
}

StreamEvents::Obstacle StreamClocks::wait_for_all() noexcept {
  StreamEvents::Obstacle worst = StreamEvents::Obstacle::none;
  for (std::size_t i = 0; StreamClock* const clock = at(i); ++i) worst = std::max(worst, clock->await(clock->now()));
  return worst;
}

void StreamClocks::wait_for_gone() noexcept {
  for (std::size_t i = 0; StreamClock* const clock = at(i); ++i) {
    if (clock->is_gone()) clock->wait(clock->now());
  }
}

}  // namespace mempool
