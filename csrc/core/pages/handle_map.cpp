#include "core/pages/handle_map.h"

#include <iterator>
#include <new>

#include "common/expects.h"
#include "common/fork_generation.h"
#include "core/pages/page_map.h"
#include "core/pages/policy.h"

namespace mempool {

bool HandleMap::commit(std::uintptr_t start, std::size_t bytes, Refusal& why) noexcept {
  Handles::iterator entry;
  try {
    entry = handles_.try_emplace(start).first;
  } catch (const std::bad_alloc&) {
    why = Refusal::metadata;
    return false;
  }
  const auto refuse = [&](Refusal reason) {
    handles_.erase(entry);
    why = reason;
    return false;
  };
  // The tables first, so that nothing has to be undone; but those of a range so long that the backend will refuse it
  // would be a large part of a machine's address space.
  if (bytes <= policy::kPreparedFirst && !PageMap::instance().prepare(start, bytes)) return refuse(Refusal::metadata);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.commit(reinterpret_cast<void*>(start), bytes, entry->second)) return refuse(Refusal::backend);
  entry->second.generation = fork_generation().load(std::memory_order_relaxed);
  if (PageMap::instance().prepare(start, bytes)) return true;
  why = Refusal::metadata;
  return memory_.decommit(entry->second) && refuse(Refusal::metadata);
}

bool HandleMap::decommit(std::uintptr_t start) noexcept {
  const auto entry = handles_.find(start);
  MEMPOOL_EXPECTS(entry != handles_.end());
  if (!memory_.decommit(entry->second)) return false;
  handles_.erase(entry);
  return true;
}

std::size_t HandleMap::bytes_at(std::uintptr_t start) const noexcept {
  const auto entry = handles_.find(start);
  MEMPOOL_EXPECTS(entry != handles_.end());
  return entry->second.bytes;
}

std::vector<Handle> HandleMap::overlapping(std::uintptr_t low, std::uintptr_t high) const {
  std::vector<Handle> out;
  auto it = handles_.upper_bound(low);
  if (it != handles_.begin() && std::prev(it)->first + std::prev(it)->second.bytes > low) --it;
  for (; it != handles_.end() && it->first < high; ++it) out.push_back(it->second);
  return out;
}

const Handle* HandleMap::highest_within(std::uintptr_t low, std::uintptr_t high) const noexcept {
  for (auto it = handles_.lower_bound(high); it != handles_.begin();) {
    --it;
    if (it->first < low) return nullptr;
    if (it->first + it->second.bytes <= high) return &it->second;  // else it reaches out of the range
  }
  return nullptr;
}

bool HandleMap::cut_at(std::uintptr_t address) noexcept {
  auto it = handles_.upper_bound(address);
  if (it == handles_.begin()) return true;
  --it;
  Handle& handle = it->second;
  if (it->first == address || it->first + handle.bytes <= address) return true;
  if (!can_cut_) return false;
  try {
    const auto entry = handles_.try_emplace(address).first;
    if (memory_.cut(handle, address - it->first, entry->second)) {
      entry->second.generation = handle.generation;
      return true;
    }
    handles_.erase(entry);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return false;
}

bool HandleMap::isolate(std::uintptr_t start, std::uintptr_t end, std::uintptr_t reservation) noexcept {
  if (!cut_at(start) || !cut_at(end)) return false;
  if (!can_cut_) return true;
  const auto first = handles_.find(start);
  for (auto next = std::next(first); next != handles_.end() && next->first < end; next = std::next(first)) {
    if (!join_with_previous(next, reservation)) break;
  }
  return true;
}

bool HandleMap::join_with_previous(std::uintptr_t start, std::uintptr_t reservation) noexcept {
  return join_with_previous(handles_.find(start), reservation);
}

bool HandleMap::join_with_previous(Handles::iterator entry, std::uintptr_t reservation) noexcept {
  if (!can_cut_ || entry == handles_.begin() || entry->first == reservation) return false;
  const auto previous = std::prev(entry);
  if (previous->first + previous->second.bytes != entry->first) return false;
  if (previous->second.generation != entry->second.generation) return false;  // another process pays for one of them
  if (!memory_.join(previous->second, entry->second)) return false;
  handles_.erase(entry);
  return true;
}

bool HandleMap::move(std::uintptr_t from, std::uintptr_t to) noexcept {
  const auto entry = handles_.find(from);
  MEMPOOL_EXPECTS(entry != handles_.end());
  return memory_.move(entry->second, reinterpret_cast<void*>(to));  // NOLINT(performance-no-int-to-ptr)
}

void HandleMap::move_back(std::uintptr_t from) noexcept {
  const auto entry = handles_.find(from);
  MEMPOOL_EXPECTS(entry != handles_.end());
  memory_.move_back(entry->second, reinterpret_cast<void*>(from));  // NOLINT(performance-no-int-to-ptr)
}

void HandleMap::adopt(HandleMap& source, std::uintptr_t from, std::uintptr_t to) noexcept {
  auto entry = source.handles_.extract(from);
  MEMPOOL_EXPECTS(!entry.empty());
  entry.key() = to;
  handles_.insert(std::move(entry));
}

bool HandleMap::open_all() noexcept {
  bool all = true;
  for (const auto& [start, handle] : handles_) all &= memory_.open(handle.address, handle.bytes);
  return all;
}

}  // namespace mempool
