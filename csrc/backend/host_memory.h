// The CPU's memory as a backend: private anonymous pages in reservations aligned for huge pages. A handle is nothing
// but its address range, so cutting and joining are free. The kernel backs a page at its first touch, a huge page at a
// time where the system has them and they are not larger than a granule.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "backend/address_space.h"
#include "backend/host_info.h"
#include "core/physical_memory.h"

namespace mempool {

class HostMemory final : public PhysicalMemory {
 public:
  // A granule where huge pages are larger than this, or not there. It is a multiple of every system's page.
  static constexpr std::size_t kLargestGranule = std::size_t{2} << 20;

  // `allowed`: which moves may be used of those that the kernel supports; tests allow fewer. `huge_page`: the size of
  // one, 0 for none; tests name others than the system's.
  explicit HostMemory(bool huge_pages, MoveSupport allowed = {.moves = true, .across_mappings = true},
                      std::size_t huge_page = huge_page_bytes()) noexcept;

  std::size_t granule_bytes() const noexcept override { return granule_; }
  Capabilities capabilities() const noexcept override {
    return {.can_cut = true, .can_alias = false, .can_move = support_.moves};
  }
  void* reserve_addresses(std::size_t bytes) noexcept override;
  void free_addresses(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  void populate(void* address, std::size_t bytes) noexcept override;
  bool cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept override;
  bool join(Handle& first, const Handle& second) noexcept override;
  bool move(Handle& handle, void* to) noexcept override;
  std::unique_ptr<Backup> make_backup() noexcept override;

 private:
  bool mappings_are_within_budget() noexcept;
  bool move_by_granules(char* from, char* to, std::size_t bytes) noexcept;
  Move move_part(char* from, char* to, std::size_t bytes) noexcept;
  bool is_lost(const void* address, std::size_t bytes) noexcept;

  const bool huge_pages_;
  const std::size_t granule_;
  const MoveSupport support_;
  std::atomic<std::uint32_t> moves_{0};
  std::atomic<bool> within_budget_{true};

  // Reserved space that a failed move lost to another mapping of the process, and that is never touched again. Moving
  // stops when the list is full.
  struct Lost {
    const char* start;
    std::size_t bytes;
  };
  static constexpr std::size_t kMostLost = 32;
  std::atomic<std::size_t> lost_count_{0};
  std::mutex lost_mutex_;
  std::array<Lost, kMostLost> lost_{};
};

}  // namespace mempool
