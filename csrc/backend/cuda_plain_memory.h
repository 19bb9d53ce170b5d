// The memory of one CUDA device that cannot manage virtual memory, as a backend by the driver's plain cuMemAlloc:
// memory and address come together and go together. Nothing moves, and a pool cannot sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "backend/cuda_driver.h"
#include "backend/cuda_events.h"
#include "core/physical_memory.h"

namespace mempool {

class CudaPlainMemory final : public PhysicalMemory {
 public:
  // nullptr when the driver has no such device.
  static std::unique_ptr<CudaPlainMemory> make(const CudaDriver& driver, int ordinal);

  std::size_t granule_bytes() const noexcept override { return kGranule; }
  Capabilities capabilities() const noexcept override { return {.reserves_memory = true}; }
  void* reserve(std::size_t bytes) noexcept override;
  void unreserve(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  std::size_t available_bytes() noexcept override;
  std::size_t capacity_bytes() const noexcept override { return total_; }
  bool cut(Handle&, std::size_t, Handle&) noexcept override { return false; }
  bool join(Handle&, const Handle&) noexcept override { return false; }
  bool move(Handle&, void*) noexcept override { return false; }
  StreamEvents* stream_events() noexcept override { return &events_; }
  std::unique_ptr<Backup> make_backup() noexcept override { return nullptr; }

 private:
  // The driver rounds this memory to 2 MiB, and as a rule aligns it to that.
  static constexpr std::size_t kGranule = std::size_t{2} << 20;

  CudaPlainMemory(const CudaDriver& driver, int device, void* context, std::size_t total);
  CudaDriver::Address allocate(std::size_t bytes) noexcept;
  bool is_given(const void* address) noexcept;
  bool give_back(void* address, std::size_t bytes) noexcept;

  const CudaDriver& driver_;
  const int device_;
  void* const context_;  // the primary context, kept for the life of the process
  const std::size_t total_;
  CudaEvents events_;
  std::atomic<std::size_t> taken_{0};  // bytes

  std::mutex mutex_;
  std::map<const void*, CudaDriver::Address> given_;  // the driver's address of an allocation, by its first granule
};

}  // namespace mempool
