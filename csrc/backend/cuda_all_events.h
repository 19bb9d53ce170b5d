// Events on the streams of all CUDA devices, for memory that belongs to none of them: pinned host memory, which copies
// on any device read and write.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "backend/cuda_device.h"
#include "backend/cuda_events.h"

namespace mempool {

// A stream's number tells its device, too. 0 is no device's: it stands for the host, whose work is done when a call
// returns. The driver is asked for nothing before the first stream of a device.
class CudaAllEvents final : public StreamEvents {
 public:
  // `stream`: the driver's handle, whose addresses have less than 56 bits.
  static StreamId id_of(int ordinal, std::uint64_t stream) noexcept {
    return (static_cast<std::uint64_t>(ordinal) + 1) << kDeviceShift | stream;
  }

  ~CudaAllEvents() override;
  Recorded record(StreamId stream, Event& out) noexcept override;
  Progress query(Event event) noexcept override;
  Progress wait(Event event) noexcept override;
  // Of every device that a stream of was named.
  Obstacle wait_for_device() noexcept override;
  std::string failure() noexcept override;
  void discard(Event event) noexcept override;

 private:
  static constexpr unsigned kDeviceShift = 56;
  static constexpr std::uint64_t kHandle = (std::uint64_t{1} << kDeviceShift) - 1;
  static std::uint64_t device_bits(std::uint64_t number) noexcept { return number & ~kHandle; }

  // Those of the device that is in the number; nullptr: the driver cannot be used, or has no such device.
  CudaEvents* events_of(std::uint64_t number) noexcept;

  std::mutex making_;
  std::array<std::atomic<CudaEvents*>, kMaxCudaDevices> devices_{};
};

}  // namespace mempool
