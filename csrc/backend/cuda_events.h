// Events on the streams of one CUDA device: they tell the core what work has finished.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cuda_driver.h"
#include "core/streams/stream_events.h"

namespace mempool {

class CudaEvents final : public StreamEvents {
 public:
  // `context`: the primary context of the device.
  CudaEvents(const CudaDriver& driver, void* context) noexcept : driver_(driver), context_(context) {}
  ~CudaEvents() override;

  // Records nothing while the stream is captured: an event of a graph does not say what work is done.
  Recorded record(StreamId stream, Event& out) noexcept override;
  Progress query(Event event) noexcept override;
  Progress wait(Event event) noexcept override;
  Obstacle wait_for_device() noexcept override;
  std::string failure() noexcept override;
  void discard(Event event) noexcept override;

 private:
  static Recorded of_error(int result) noexcept;
  Progress progress_of(int result) noexcept;

  const CudaDriver& driver_;
  void* const context_;
  std::atomic<int> failure_{CudaDriver::kSuccess};  // the last error of work, not of a call
  std::mutex mutex_;
  std::vector<void*> unused_;  // to be recorded again: making one takes long
};

}  // namespace mempool
