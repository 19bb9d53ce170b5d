// The memory of one CUDA device that cannot manage virtual memory, as a backend by the driver's plain cuMemAlloc.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "backend/allocated_memory.h"
#include "backend/cuda_driver.h"
#include "backend/cuda_events.h"

namespace mempool {

class CudaPlainMemory final : public AllocatedMemory {
 public:
  // nullptr when the driver has no such device.
  static std::unique_ptr<CudaPlainMemory> make(const CudaDriver& driver, int ordinal);

  std::size_t available_bytes() noexcept override;
  std::size_t capacity_bytes() const noexcept override { return total_; }
  StreamEvents* stream_events() noexcept override { return &events_; }

 private:
  CudaPlainMemory(const CudaDriver& driver, int device, void* context, std::size_t total);
  void* ask(std::size_t bytes) noexcept override;
  bool give_back(void* address, std::size_t bytes) noexcept override;
  void observe(bool begins, void* address, std::size_t bytes) noexcept override;

  const CudaDriver& driver_;
  const int device_;
  void* const context_;  // the primary context, kept for the life of the process
  const std::size_t total_;
  CudaEvents events_;
  std::atomic<std::size_t> taken_{0};  // bytes
};

}  // namespace mempool
