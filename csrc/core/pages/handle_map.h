// The handles of physical memory that one heap has mapped, by their addresses: committed and decommitted, cut and
// joined where the backend can do that, moved to other addresses and between heaps.
//
// Invariant: an entry's key is its handle's address, and no two handles overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/pages/refusal.h"
#include "core/physical_memory.h"

namespace mempool {

class HandleMap {
 public:
  using Handles = std::map<std::uintptr_t, Handle>;

  explicit HandleMap(PhysicalMemory& memory) noexcept : memory_(memory), can_cut_(memory.capabilities().can_cut) {}

  // New memory at `start`, for which the page map has tables then. False: there is none, `why` says why not; and only
  // if contains(start) all the same, the backend has kept it there.
  bool commit(std::uintptr_t start, std::size_t bytes, Refusal& why) noexcept;
  // Gives the handle at `start` back. False: it stays.
  bool decommit(std::uintptr_t start) noexcept;

  bool contains(std::uintptr_t start) const noexcept { return handles_.contains(start); }
  bool empty() const noexcept { return handles_.empty(); }
  // Of the handle at `start`.
  std::size_t bytes_at(std::uintptr_t start) const noexcept;
  // The handles that lie in [low, high) in part or in whole. May throw std::bad_alloc.
  std::vector<Handle> overlapping(std::uintptr_t low, std::uintptr_t high) const;
  // The highest handle that lies in [low, high) in whole, or nullptr.
  const Handle* highest_within(std::uintptr_t low, std::uintptr_t high) const noexcept;
  // Calls action(start, bytes) for each handle that lies in [low, high) in whole, upward.
  template <typename Action>
  void for_each_within(std::uintptr_t low, std::uintptr_t high, Action action) const {
    for (auto it = handles_.lower_bound(low); it != handles_.end() && it->first + it->second.bytes <= high; ++it) {
      action(it->first, it->second.bytes);
    }
  }
  const Handles& all() const noexcept { return handles_; }

  // Makes `address` a boundary between handles. True also where it is one already, or where no handle lies.
  bool cut_at(std::uintptr_t address) noexcept;
  // Makes [start, end) as few handles as can be had, one where handles can be cut and all are of one process, none of
  // which reaches out of it. Where they cannot be cut it is one handle already. False: some handle reaches out of it.
  // `reservation`: where that begins.
  bool isolate(std::uintptr_t start, std::uintptr_t end, std::uintptr_t reservation) noexcept;
  // Makes the handle at `start` one with that before it, where handles can be cut and both lie in one reservation.
  bool join_with_previous(std::uintptr_t start, std::uintptr_t reservation) noexcept;

  // Maps the memory of the handle at `from` at `to`, too, or instead. The entry stays at `from` until adopt().
  bool move(std::uintptr_t from, std::uintptr_t to) noexcept;
  void move_back(std::uintptr_t from) noexcept;
  // Takes over the entry of a moved handle. `source` may be this map.
  void adopt(HandleMap& source, std::uintptr_t from, std::uintptr_t to) noexcept;

  // Entries that leave and come back, as memory is given up and taken again at the same address.
  Handles::node_type extract(std::uintptr_t start) noexcept { return handles_.extract(start); }
  void insert(Handles::node_type handle) noexcept { handles_.insert(std::move(handle)); }

  // Makes all of them accessible again. False: not all.
  bool open_all() noexcept;

 private:
  bool join_with_previous(Handles::iterator entry, std::uintptr_t reservation) noexcept;

  PhysicalMemory& memory_;
  const bool can_cut_;
  Handles handles_;
};

}  // namespace mempool
