// The streams of a FakeMemory: counts of work that was enqueued and of work that is done, and events at a count.
#include <algorithm>
#include <new>

#include "backend/fake_memory.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<std::mutex>;

}  // namespace

void FakeMemory::work(StreamId stream) {
  const Guard guard(mutex_);
  ++streams_.lines[stream].asked;
}

void FakeMemory::finish(StreamId stream, std::uint64_t pieces) {
  const Guard guard(mutex_);
  Streams::Line& line = streams_.lines[stream];
  line.done += std::min(pieces, line.asked - line.done);
}

void FakeMemory::refuse_events(bool refused) {
  const Guard guard(mutex_);
  streams_.refused = refused;
}

std::uint64_t FakeMemory::waits() const noexcept {
  const Guard guard(mutex_);
  return streams_.waits;
}

std::uint64_t FakeMemory::queries() const noexcept {
  const Guard guard(mutex_);
  return streams_.queries;
}

void FakeMemory::capture_events() {
  const Guard guard(mutex_);
  for (auto& [event, recorded] : streams_.events) recorded.is_captured = true;
}

void FakeMemory::destroy_stream(StreamId stream) {
  const Guard guard(mutex_);
  streams_.lines[stream].is_gone = true;
}

void FakeMemory::create_stream(StreamId stream) {
  const Guard guard(mutex_);
  Streams::Line& line = streams_.lines[stream];
  if (line.done < line.asked) broken("create_stream: a handle whose work goes on");
  line.is_gone = false;
}

void FakeMemory::fail_device(bool failed) {
  const Guard guard(mutex_);
  streams_.failed = failed;
}

StreamEvents::Recorded FakeMemory::Streams::record(StreamId stream, Event& out) noexcept {
  const Guard guard(memory_.mutex_);
  if (!memory_.enter(Call::record)) return Recorded::unavailable;
  try {
    if (failed || lines[stream].is_gone) return Recorded::never;
    if (refused) return Recorded::captured;
    events[next_] = {stream, lines[stream].asked};
  } catch (const std::bad_alloc&) {
    return Recorded::unavailable;
  }
  out = next_++;
  return Recorded::yes;
}

StreamEvents::Progress FakeMemory::Streams::query(Event event) noexcept {
  const Guard guard(memory_.mutex_);
  ++queries;
  const Asked& recorded = events.at(event);
  if (failed) return Progress::failed;
  if (recorded.is_captured) return Progress::lost;
  return lines.at(recorded.stream).done >= recorded.until ? Progress::done : Progress::pending;
}

StreamEvents::Progress FakeMemory::Streams::wait(Event event) noexcept {
  const Guard guard(memory_.mutex_);
  const Asked& recorded = events.at(event);
  if (failed) return Progress::failed;
  if (recorded.is_captured) return Progress::lost;
  Line& line = lines.at(recorded.stream);
  waits += line.done < recorded.until ? 1 : 0;
  line.done = std::max(line.done, recorded.until);
  return Progress::done;
}

StreamEvents::Obstacle FakeMemory::Streams::wait_for_device() noexcept {
  const Guard guard(memory_.mutex_);
  if (failed) return Obstacle::failure;
  if (refused) return Obstacle::capture;
  for (auto& [stream, line] : lines) {
    waits += line.done < line.asked ? 1 : 0;
    line.done = line.asked;
  }
  return Obstacle::none;
}

void FakeMemory::Streams::discard(Event event) noexcept {
  const Guard guard(memory_.mutex_);
  if (events.erase(event) != 1) memory_.broken("discard: no such event");
}

}  // namespace mempool
