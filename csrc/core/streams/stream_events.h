// The contract toward the events of a device (CUDA's, say), which works later than it is asked to, in order on each of
// its streams.
#pragma once

#include <cstdint>
#include <string>

namespace mempool {

// The driver's own handle of a stream, as a number. 0 is the default stream, and the only one of a CPU.
using StreamId = std::uint64_t;

// Nothing throws. Calls may come from several threads at once.
class StreamEvents {
 public:
  using Event = std::uint64_t;
  enum class Progress : std::uint8_t {
    pending,
    done,
    lost,    // the event says nothing: the stream was captured into a graph just then
    failed,  // the device has failed: it cannot be known what it still does
  };
  enum class Recorded : std::uint8_t {
    yes,
    captured,     // the stream is captured into a graph just now: ask again later
    unavailable,  // no memory for an event, or the driver is out of reach: ask again later
    never,        // there is no such stream any more, or it has no events: wait_for_device() alone says that it is done
  };
  // Why it cannot be known that work is done; the later ones weigh more.
  enum class Obstacle : std::uint8_t {
    none,
    unavailable,  // no memory for an event, or the driver is out of reach
    capture,      // a stream is captured into a graph just now
    failure,      // the device has failed
  };

  StreamEvents() = default;
  StreamEvents(const StreamEvents&) = delete;
  StreamEvents& operator=(const StreamEvents&) = delete;
  virtual ~StreamEvents() = default;

  // An event that is done when all work is done that is in the stream now.
  virtual Recorded record(StreamId stream, Event& out) noexcept = 0;
  virtual Progress query(Event event) noexcept = 0;
  // Blocks until the event is done. Never `pending`.
  virtual Progress wait(Event event) noexcept = 0;
  // Blocks until all work of the device is done, whatever its stream, and that of streams which are gone; or says why
  // that cannot be had now.
  virtual Obstacle wait_for_device() noexcept = 0;
  // What the device has failed with, in its driver's words; empty while it works. Then nothing more is ever done.
  virtual std::string failure() noexcept { return {}; }
  // The event is not used any more.
  virtual void discard(Event event) noexcept = 0;
};

}  // namespace mempool
