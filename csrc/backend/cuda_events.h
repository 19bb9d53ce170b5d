// Events on the streams of one CUDA device.
#pragma once

#include <mutex>
#include <vector>

#include "backend/cuda_driver.h"
#include "core/stream_events.h"

namespace mempool {

class CudaEvents final : public StreamEvents {
 public:
  // `context`: the device's.
  CudaEvents(const CudaDriver& driver, void* context) noexcept : driver_(driver), context_(context) {}
  ~CudaEvents() override;

  // False also while the stream is captured: an event of a graph says nothing about work that is done.
  bool record(StreamId stream, Event& out) noexcept override;
  Progress query(Event event) noexcept override;
  void wait(Event event) noexcept override;
  bool wait_for_device() noexcept override;
  void discard(Event event) noexcept override;

 private:
  const CudaDriver& driver_;
  void* const context_;
  std::mutex mutex_;
  std::vector<void*> unused_;  // to be recorded again: making one takes long
};

}  // namespace mempool
