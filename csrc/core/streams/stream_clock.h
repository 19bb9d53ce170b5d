// A stream's clock: numbers for moments of one stream, and which of them have passed. It answers when memory that work
// on the stream used may be used by another stream.
//
// A moment has passed when all work is done that was in the stream then. To ask for the present one costs nothing. An
// event is recorded only when a caller must know whether a moment has passed, and it serves all moments since the event
// before. A late event only delays the answer. After an error no moment counts as passed.
//
// A stream may end while its work goes on. Its clock stays, and goes on with a later stream of the same handle: a
// driver gives a handle out again only once the work of the stream that had it is done.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "common/spin_lock.h"
#include "core/streams/stream_events.h"

namespace mempool {

class StreamClock {
 public:
  using Moment = std::uint64_t;
  using Obstacle = StreamEvents::Obstacle;
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
  // As of the last poll or wait, without a question to the device.
  bool has_passed(Moment moment) const noexcept {
    return events_ == nullptr || moment <= passed_.load(std::memory_order_acquire);
  }
  // Blocks until the whole device is at rest. False: that cannot be had now.
  bool wait_for_device() noexcept { return events_ == nullptr || events_->wait_for_device() == Obstacle::none; }
  // Marks and blocks, or says why it cannot be known now.
  Obstacle await(Moment moment) noexcept;
  bool wait(Moment moment) noexcept { return await(moment) == Obstacle::none; }
  // The stream is gone, as of the last mark: its moments pass only with a wait for the whole device.
  bool is_gone() const noexcept { return is_gone_.load(std::memory_order_relaxed); }
  AdaptiveMutex& lock_for_fork() noexcept { return mutex_; }

 private:
  struct Mark {
    Moment moment;
    StreamEvents::Event event;
  };
  StreamEvents::Recorded mark_locked(Moment moment) noexcept;
  void poll_locked() noexcept;
  void pass(Moment moment) noexcept;
  void lose(Moment moment) noexcept;
  void forget(std::deque<Mark>::iterator mark) noexcept;
  Obstacle wait_for_device_until(Moment moment, std::unique_lock<AdaptiveMutex>& lock) noexcept;

  StreamEvents* const events_;
  const StreamId stream_;
  std::atomic<Moment> next_{1};
  std::atomic<Moment> marked_{0};  // an event says when it has passed
  std::atomic<Moment> passed_{0};
  std::atomic<bool> is_gone_{false};
  AdaptiveMutex mutex_;                     // a leaf; guards the rest. It is not held while the device is waited for.
  std::deque<Mark> marks_;                  // that have not passed, the oldest first
  int waiting_ = 0;                         // threads in wait(), which still use the events of marks
  std::deque<StreamEvents::Event> unused_;  // that are discarded when no thread waits
};

// The clocks of a device, one for each stream that was ever named.
class StreamClocks {
 public:
  explicit StreamClocks(StreamEvents* events) noexcept : events_(events) {}
  // Lives as long as this object. Throws std::bad_alloc.
  StreamClock& of(StreamId stream);
  // Blocks until all work is done that is in any of the streams now, or says what keeps that from being known of some.
  StreamEvents::Obstacle wait_for_all() noexcept;
  // The same for streams that are gone, of which nothing else can be known.
  void wait_for_gone() noexcept;
  void lock_for_fork() noexcept;  // and every clock
  void unlock_after_fork() noexcept;

 private:
  StreamClock* at(std::size_t index) noexcept;

  StreamEvents* const events_;
  AdaptiveMutex mutex_;
  std::vector<std::unique_ptr<StreamClock>> clocks_;
};

}  // namespace mempool
