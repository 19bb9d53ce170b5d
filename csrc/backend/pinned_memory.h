// Host memory that is page-locked for a device, as a backend: the address space of the host, each reservation of it
// registered with a driver as one piece.
//
// A block lies in one registration, because a reservation is one: CUDA refuses a copy whose host range begins in one
// registration and ends in another, even where they are neighbours. So handles neither move nor are they cut or joined.
// A registration costs a call, and the locking of each page, a few hundred of them for a MiB: from about a MiB on the
// call itself does not count, which is why a larger block gets a registration of its own, as long as the block.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "backend/host_info.h"
#include "core/physical_memory.h"

namespace mempool {

// Locks host pages for a device. Nothing throws; calls on disjoint ranges may come from several threads at once.
class HostRegistrar {
 public:
  HostRegistrar() = default;
  HostRegistrar(const HostRegistrar&) = delete;
  HostRegistrar& operator=(const HostRegistrar&) = delete;
  virtual ~HostRegistrar() = default;
  // Whole pages that can be read and written, none of which is locked. 0, or the driver's error.
  virtual int lock(void* address, std::size_t bytes) noexcept = 0;
  // The reverse, for exactly a range that was locked. 0, or the driver's error: it is locked still.
  virtual int unlock(void* address) noexcept = 0;
  // The driver is out of reach for good: a forked child has the pages, but cannot unlock them.
  virtual bool is_cut_off() const noexcept { return false; }
};

class PinnedMemory final : public PhysicalMemory {
 public:
  // `events`: of the streams that use the memory; nullptr: all work is done when a call returns.
  PinnedMemory(std::unique_ptr<HostRegistrar> registrar, std::unique_ptr<StreamEvents> events, bool huge_pages);

  std::size_t granule_bytes() const noexcept override { return granule_; }
  Capabilities capabilities() const noexcept override { return {.backs_addresses = true, .takes_exactly = true}; }
  void* reserve_addresses(std::size_t bytes) noexcept override;
  void free_addresses(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  bool cut(Handle&, std::size_t, Handle&) noexcept override { return false; }
  bool join(Handle&, const Handle&) noexcept override { return false; }
  bool move(Handle&, void*) noexcept override { return false; }
  StreamEvents* stream_events() noexcept override { return events_.get(); }
  std::string last_refusal() const override;
  std::unique_ptr<Backup> make_backup() noexcept override { return nullptr; }

  // Calls of one kind: how many, and what they took in microseconds.
  struct Times {
    std::int64_t count = 0;
    std::int64_t total_us = 0;
    std::int64_t most_us = 0;
    std::int64_t least_us = 0;
    void add(std::int64_t us) noexcept;
  };
  struct Figures {
    Times locking;
    Times unlocking;
    std::array<std::int64_t, 64> locked_by_size{};  // registrations of up to 2^i bytes, and more than 2^(i-1)
  };
  Figures figures() const;
  void reset_figures();

 private:
  bool release(void* address, std::size_t bytes) noexcept;

  const std::unique_ptr<HostRegistrar> registrar_;
  const std::unique_ptr<StreamEvents> events_;
  const bool huge_pages_;
  const std::size_t granule_ = page_bytes();
  mutable std::mutex mutex_;  // a leaf; guards the rest
  Figures figures_;
  std::size_t refused_bytes_ = 0;  // of the registration that was refused last; 0: none was
  int refusal_ = 0;                // the driver's error
};

}  // namespace mempool
