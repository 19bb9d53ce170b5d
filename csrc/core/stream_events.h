// The contract toward a device whose work is done in order on streams, and later than the calls that ask for it.
#pragma once

#include <cstdint>

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
    lost,  // the event says nothing: the stream was captured into a graph just then
  };

  StreamEvents() = default;
  StreamEvents(const StreamEvents&) = delete;
  StreamEvents& operator=(const StreamEvents&) = delete;
  virtual ~StreamEvents() = default;

  // An event that is done when all work is done that is in the stream now. False: there is none, as while the stream
  // is being captured into a graph; ask again later.
  virtual bool record(StreamId stream, Event& out) noexcept = 0;
  // A device that has failed does no work any more, so there everything is done.
  virtual Progress query(Event event) noexcept = 0;
  // Blocks until the event is done.
  virtual void wait(Event event) noexcept = 0;
  // Blocks until all work of the device is done, whatever its stream. False: that cannot be had now.
  virtual bool wait_for_device() noexcept = 0;
  // The event is not used any more.
  virtual void discard(Event event) noexcept = 0;
};

}  // namespace mempool
