// Physical memory by plain allocations: memory and address come together from whatever allocates it, and go back
// together, whole. Nothing moves, and a pool cannot sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "core/physical_memory.h"

namespace mempool {

class AllocatedMemory : public PhysicalMemory {
 public:
  std::size_t granule_bytes() const noexcept override { return kGranule; }
  Capabilities capabilities() const noexcept override { return {.backs_addresses = true, .decommit_waits = true}; }
  void* reserve_addresses(std::size_t bytes) noexcept override;
  void free_addresses(void* address, std::size_t bytes) noexcept override;
  bool commit(void* address, std::size_t bytes, Handle& out) noexcept override;
  bool decommit(const Handle& handle) noexcept override;
  bool cut(Handle&, std::size_t, Handle&) noexcept override { return false; }
  bool join(Handle&, const Handle&) noexcept override { return false; }
  bool move(Handle&, void*) noexcept override { return false; }
  std::unique_ptr<Backup> make_backup() noexcept override { return nullptr; }

 protected:
  // The driver rounds its allocations to 2 MiB, and torch's native allocator asks for multiples of it.
  static constexpr std::size_t kGranule = std::size_t{2} << 20;

  // Whether these bytes are part of a segment of whichever memory of this class.
  static bool overlaps(void* address, std::size_t bytes) noexcept;

 private:
  // An allocation of any alignment; nullptr: refused.
  virtual void* ask(std::size_t bytes) noexcept = 0;
  // False: it is still allocated.
  virtual bool give_back(void* address, std::size_t bytes) noexcept = 0;
  // A segment is there, or will be gone: whoever has registered it elsewhere (with a network, say) hears of its end
  // before it ends.
  virtual void observe(bool begins, void* address, std::size_t bytes) noexcept = 0;

  bool return_given(const void* address) noexcept;

  // Bytes more than a segment: the allocator does not align to granules by itself.
  std::atomic<std::size_t> slack_{0};
};

}  // namespace mempool
