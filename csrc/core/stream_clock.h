// Time on one stream: numbers for moments, and which of them have passed.
//
// A moment has passed when all work is done that was in the stream then. To ask for the present one costs nothing; only
// when somebody wants to know whether a moment has passed, an event is recorded, and it serves all moments since the
// one before. An event that comes late says that a moment has passed later than it had, never earlier.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/spin_lock.h"
#include "core/stream_events.h"

namespace mempool {

class StreamClock {
 public:
  using Moment = std::uint64_t;
  static constexpr Moment kAlways = 0;  // has passed

  // `events`: nullptr, and every moment has passed.
  StreamClock(StreamEvents* events, StreamId stream) noexcept : events_(events), stream_(stream) {}
  StreamClock(const StreamClock&) = delete;
  StreamClock& operator=(const StreamClock&) = delete;
  ~StreamClock();

  StreamId stream() const noexcept { return stream_; }
  Moment now() const noexcept { return events_ != nullptr ? next_.load(std::memory_order_relaxed) : kAlways; }
  // From here on it can become known that `moment` has passed. Cheap when it can already. False: not yet, for the
  // device gives no event; has_passed() will say no.
  bool mark(Moment moment) noexcept;
  // Asks the device how far it has come. One question, where the first of the marked moments has not passed.
  void poll() noexcept;
  // As of the last poll or wait. Asks nobody.
  bool has_passed(Moment moment) const noexcept {
    return events_ == nullptr || moment <= passed_.load(std::memory_order_acquire);
  }
  // Blocks until the whole device is at rest. False: that cannot be had now.
  bool wait_for_device() noexcept { return events_ == nullptr || events_->wait_for_device(); }
  // Marks and blocks. False: it could not be marked.
  bool wait(Moment moment) noexcept;

 private:
  struct Mark {
    Moment moment;
    StreamEvents::Event event;
  };
  bool mark_locked(Moment moment) noexcept;
  void poll_locked() noexcept;
  void pass_front() noexcept;

  StreamEvents* const events_;
  const StreamId stream_;
  std::atomic<Moment> next_{1};
  std::atomic<Moment> marked_{0};  // an event says when it has passed
  std::atomic<Moment> passed_{0};
  AdaptiveMutex mutex_;                     // a leaf; guards the rest. Nobody waits for the device with it held.
  std::deque<Mark> marks_;                  // that have not passed, the oldest first
  int waiting_ = 0;                         // threads; they hold on to events
  std::deque<StreamEvents::Event> unused_;  // to be discarded when none waits
};

// The clocks of a device, one for each stream that was ever named.
class StreamClocks {
 public:
  explicit StreamClocks(StreamEvents* events) noexcept : events_(events) {}
  // Lives as long as this object. Throws std::bad_alloc.
  StreamClock& of(StreamId stream);
  // Blocks until all work is done that is in any of the streams now. False: of some it cannot be known.
  bool wait_for_all() noexcept;

 private:
  StreamEvents* const events_;
  AdaptiveMutex mutex_;
  std::vector<std::unique_ptr<StreamClock>> clocks_;
};

}  // namespace mempool
