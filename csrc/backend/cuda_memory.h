// The memory of one CUDA device as a backend, by the driver's virtual memory management. A handle is what one
// cuMemCreate made: it stays whole for life, and can be mapped at two addresses at once.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "backend/cuda_driver.h"
#include "backend/cuda_events.h"
#include "core/physical_memory.h"

namespace mempool {

class CudaMemory final : public PhysicalMemory {
 public:
  // Whether the driver has the device, and the device manages virtual memory.
  static bool is_supported(const CudaDriver& driver, int ordinal) noexcept;
  // The backend of a device that is_supported(). nullptr when the driver refuses.
  static std::unique_ptr<CudaMemory> make(const CudaDriver& driver, int ordinal);

  // Peer access: from the next open() on `device` may use the memory of this one, or may no longer.
  void let_in(int device) noexcept;
  void shut_out(int device) noexcept;
  // A file descriptor for the memory of a handle, which another process can map; -1: the driver gives none.
  int export_handle(const Handle& handle) noexcept;

  // The observer is told of every range that is mapped or unmapped, with the allocator's locks held: it must not
  // allocate here.
  using Observer = void (*)(int device, bool mapped, void* address, std::size_t bytes) noexcept;
  static void set_observer(Observer observer) noexcept;
  static void observe(int device, bool mapped, void* address, std::size_t bytes) noexcept;

  std::size_t granule_bytes() const noexcept override { return granule_; }
  Capabilities capabilities() const noexcept override {
    return {.can_cut = false, .can_alias = true, .can_move = true};
  }
  void* reserve_addresses(std::size_t bytes) noexcept override;
  void free_addresses(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  // Computed from the device's total, and once the driver has refused, from what this process had by then.
  std::size_t available_bytes() noexcept override {
    const std::size_t most = most_.load(std::memory_order_relaxed);
    const std::size_t committed = committed_.load(std::memory_order_relaxed);
    return most > committed ? most - committed : 0;
  }
  std::size_t capacity_bytes() const noexcept override { return total_; }
  bool cut(Handle&, std::size_t, Handle&) noexcept override { return false; }
  bool join(Handle&, const Handle&) noexcept override { return false; }
  bool open(void* address, std::size_t bytes) noexcept override;
  bool move(Handle& handle, void* to) noexcept override;
  bool move_back(Handle& handle, void* from) noexcept override;
  bool unmap(void* address, std::size_t bytes) noexcept override;
  StreamEvents* stream_events() noexcept override { return &events_; }
  std::unique_ptr<Backup> make_backup() noexcept override;

 private:
  static constexpr int kMostDevices = 64;  // a bit for each in let_in_

  CudaMemory(const CudaDriver& driver, int device, void* context, std::size_t granule, bool is_shareable,
             std::size_t total);
  void release_later(CudaDriver::Token token) noexcept;
  void release_waiting() noexcept;

  const CudaDriver& driver_;
  const int device_;
  void* const context_;  // the primary context, which torch uses too; kept for the life of the process
  const std::size_t granule_;

  const bool is_shareable_;
  const std::size_t total_;  // bytes of the device
  CudaEvents events_;
  std::atomic<std::uint64_t> let_in_;  // devices that may use the memory, a bit for each
  std::atomic<std::size_t> committed_{0};
  std::atomic<std::size_t> most_;  // bytes that can be committed, as far as is known

  // Handles that are mapped nowhere and that the driver did not take back. Each commit and decommit tries again.
  std::mutex waiting_mutex_;
  std::array<CudaDriver::Token, 64> waiting_{};
  std::size_t waiting_count_ = 0;
};

}  // namespace mempool
