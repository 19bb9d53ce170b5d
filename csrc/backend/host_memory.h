// CPU memory: private anonymous pages in reservations aligned for huge pages. A handle is nothing but its address
// range, so cutting and joining are free. Backing comes at the first touch, one huge page at a time where the system
// has them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/physical_memory.h"

namespace mempool {

class HostMemory final : public PhysicalMemory {
 public:
  explicit HostMemory(bool huge_pages) noexcept;

  std::size_t granule_bytes() const noexcept override { return granule_; }
  Capabilities capabilities() const noexcept override {
    return {.can_cut = true, .can_alias = false, .can_move = can_move_};
  }
  void* reserve(std::size_t bytes) noexcept override;
  void unreserve(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  bool cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept override;
  bool join(Handle& first, const Handle& second) noexcept override;
  bool move(Handle& handle, void* to) noexcept override;
  std::unique_ptr<Backup> make_backup() noexcept override;

 private:
  bool mappings_are_within_budget() noexcept;

  const bool huge_pages_;
  const std::size_t granule_;
  const bool can_move_;
  std::atomic<std::uint32_t> moves_{0};
  std::atomic<bool> within_budget_{true};
};

}  // namespace mempool
