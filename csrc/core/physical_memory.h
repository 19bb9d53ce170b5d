// The contract between the allocator and a backend, which gives it memory: an operating system, a driver, or a test.
//
// Four things are kept apart:
//   address space   reserve_, free_addresses costs nothing physical, an access to it faults
//   backing         commit / decommit        one handle of physical memory, mapped whole at one address
//   identity        cut / join / move        memory gets another address without a copy, which defragmentation needs
//   order           stream_events            what work on the device has finished; a CPU has none to wait for
//
// Rules for every implementation:
//   - sizes and addresses are multiples of granule_bytes(), and no size is 0;
//   - preconditions are checked by MEMPOOL_EXPECTS, as far as the implementation knows of them;
//   - a call that returns false (or nullptr) has changed nothing;
//   - nothing throws, prints or aborts;
//   - calls on disjoint ranges may come from several threads at once;
//   - the contents of fresh backing are undefined.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/expects.h"
#include "core/streams/stream_events.h"

namespace mempool {

// A piece of physical memory, mapped at `address`. `token` is the backend's own name for it (a CUDA driver handle, an
// index), 0 where the backend needs none.
struct Handle {
  void* address = nullptr;
  std::size_t bytes = 0;
  std::uint64_t token = 0;
  std::uint32_t generation = 0;  // of forks, in which it was committed; HandleMap keeps it
};

// The contents of sleeping memory, kept outside of the memory that it gives up.
class Backup {
 public:
  Backup() = default;
  Backup(const Backup&) = delete;
  Backup& operator=(const Backup&) = delete;
  virtual ~Backup() = default;
  // Copies the range into the backup. False: that failed.
  virtual bool save(const void* address, std::size_t bytes) noexcept = 0;
  // What went wrong in the call that failed last, and where the backup lies, for people: not empty. May throw
  // std::bad_alloc.
  virtual std::string problem() const = 0;
  // Copies all that was saved back to where it was. False: that failed; it may be tried again.
  virtual bool restore() noexcept = 0;
};

class PhysicalMemory {
 public:
  struct Capabilities {
    bool can_cut = false;    // one handle can become two, and neighbours one; else handles stay whole for life
    bool can_alias = false;  // move() leaves the old address mapped until the caller calls unmap()
    bool can_move = false;   // move() is implemented; without it memory is never defragmented
    // reserve_addresses() takes the memory, too: commit() makes one handle of a whole reservation, once, and takes
    // nothing more; decommit() gives memory and addresses back for good, with nothing left for free_addresses().
    // Excludes the three above.
    bool backs_addresses = false;
    bool decommit_waits = false;  // decommit() may wait for all work of the device
    // A reservation is worth as much care as its bytes: none is larger than its request, and what is free goes back
    // before more is taken than was ever live. With backs_addresses alone.
    bool takes_exactly = false;
  };

  PhysicalMemory() = default;
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;
  virtual ~PhysicalMemory() = default;

  // The size of the smallest piece that can be mapped, a power of two. Constant for the life of the object.
  virtual std::size_t granule_bytes() const noexcept = 0;
  virtual Capabilities capabilities() const noexcept = 0;

  // Address space, aligned to a granule, with nothing mapped in it. nullptr when refused.
  virtual void* reserve_addresses(std::size_t bytes) noexcept = 0;
  // Precondition: exactly a range that reserve_addresses() returned, with nothing mapped in it.
  virtual void free_addresses(void* address, std::size_t bytes) noexcept = 0;

  // Makes new physical memory and maps it at `address`, inside reserved space where nothing is mapped. Fills `out`. The
  // memory may be used once open() was called for it.
  virtual bool commit(void* address, std::size_t bytes, Handle& out) noexcept = 0;
  // Makes the handles of the range usable that commit() or move() mapped. They fill it without a gap.
  virtual bool open(void* /*address*/, std::size_t /*bytes*/) noexcept { return true; }
  // Unmaps the handle and gives its memory back. Precondition: all work that used it has finished. False: the handle is
  // still mapped and whole, its contents are undefined.
  virtual bool decommit(const Handle& handle) noexcept = 0;

  // Has the system back the range at once where it would do so at the first touch. It is committed, and may be in use.
  // Without an effect where that is not possible.
  virtual void populate(void* /*address*/, std::size_t /*bytes*/) noexcept {}

  // About how many more bytes commit() could have. No promise: other processes take memory, too.
  virtual std::size_t available_bytes() noexcept { return SIZE_MAX; }

  // The most bytes that can ever be committed at one time; SIZE_MAX where that is not known. Constant for the life of
  // the object.
  virtual std::size_t capacity_bytes() const noexcept { return SIZE_MAX; }

  // Splits `handle` into its first `first_bytes` (which stay in `handle`) and `rest`. Precondition: can_cut,
  // 0 < first_bytes < handle.bytes. Costs no system call.
  virtual bool cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept = 0;
  // The reverse of cut(): afterwards `first` is both. Precondition: can_cut; `second` begins where `first` ends, in the
  // same reservation. Costs no system call.
  virtual bool join(Handle& first, const Handle& second) noexcept = 0;

  // Maps the handle's memory with its contents at `to` (reserved, nothing mapped). The memory may be used there once
  // open() was called. Without can_alias it is unmapped from the old address, and all work that used it has finished;
  // with can_alias work that uses it at the old address may go on until unmap(). Precondition: can_move.
  virtual bool move(Handle& handle, void* to) noexcept = 0;
  // Takes back a move() that open() refused: the handle is mapped at `from` alone, as it was. Precondition: can_alias.
  virtual bool move_back(Handle& /*handle*/, void* /*from*/) noexcept {
    MEMPOOL_EXPECTS(capabilities().can_alias);
    return false;
  }
  // Unmaps the old addresses that move() left mapped: adjacent ranges, each whole. Precondition: can_alias, all work
  // that used the memory there has finished. False: all of it is still mapped.
  virtual bool unmap(void* /*address*/, std::size_t /*bytes*/) noexcept {
    MEMPOOL_EXPECTS(capabilities().can_alias);
    return false;
  }

  // The events of the device's streams; nullptr where all work is done when a call returns. They live as long as this
  // object.
  virtual StreamEvents* stream_events() noexcept { return nullptr; }

  // What the source of the memory said when reserve_addresses() or commit() was refused last, for people; empty where
  // it says nothing. May throw std::bad_alloc.
  virtual std::string last_refusal() const { return {}; }

  // An empty backup; nullptr when refused.
  virtual std::unique_ptr<Backup> make_backup() noexcept = 0;

 protected:
  // For the preconditions of the calls above.
  bool is_on_granules(const void* address, std::size_t bytes) const noexcept {
    const std::uintptr_t granule = granule_bytes();
    return bytes > 0 && bytes % granule == 0 && reinterpret_cast<std::uintptr_t>(address) % granule == 0;
  }
};

}  // namespace mempool
