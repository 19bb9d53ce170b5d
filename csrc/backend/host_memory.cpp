#include "backend/host_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "backend/address_space.h"
#include "backend/file_backup.h"
#include "backend/host_info.h"
#include "common/expects.h"

namespace mempool {
namespace {

MoveSupport both(MoveSupport a, MoveSupport b) {
  return {.moves = a.moves && b.moves, .across_mappings = a.across_mappings && b.across_mappings};
}

}  // namespace

// A part of a huge page that is given back or moved splits it, and the kernel may keep that part until it is short of
// memory. So only huge pages that fit a granule are asked for; and granules of 32 MiB or 512 MiB, which are the larger
// ones, would waste more than huge pages are worth.
HostMemory::HostMemory(bool huge_pages, MoveSupport allowed, std::size_t huge_page) noexcept
    : huge_pages_(huge_pages && huge_page <= kLargestGranule),
      granule_(huge_page > 0 && huge_page <= kLargestGranule ? huge_page : kLargestGranule),
      support_(both(probe_move_pages(), allowed)) {}

void* HostMemory::reserve_addresses(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  void* const address = map_space(bytes, granule_);
  // A kernel without huge pages refuses the advice, and the memory works without them.
  if (address != nullptr) advise_huge_pages(address, bytes, huge_pages_);
  return address;
}

void HostMemory::free_addresses(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  auto* at = static_cast<char*>(address);
  char* const end = at + bytes;
  if (!is_lost(address, bytes)) {
    unmap_space(address, bytes);
    return;
  }
  for (; at < end; at += granule_) {
    if (!is_lost(at, granule_)) unmap_space(at, granule_);
  }
}

bool HostMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  if (is_lost(address, bytes) || !open_space(address, bytes)) return false;
  out = {address, bytes, 0};
  return true;
}

bool HostMemory::decommit(const Handle& handle) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(handle.address, handle.bytes));
  return shut_space(handle.address, handle.bytes);
}

// In pieces, between which others that map or unmap memory get their turn. Linux before 5.14 does not know how to.
void HostMemory::populate(void* address, std::size_t bytes) noexcept {
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older headers do not have
  constexpr std::size_t kPiece = std::size_t{64} << 20;
  auto* const start = static_cast<char*>(address);
  for (std::size_t at = 0; at < bytes; at += kPiece) {
    if (madvise(start + at, std::min(kPiece, bytes - at), kPopulateWrite) != 0) return;
  }
}

bool HostMemory::cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(handle.address, first_bytes) && first_bytes < handle.bytes);
  rest = {static_cast<char*>(handle.address) + first_bytes, handle.bytes - first_bytes, 0};
  handle.bytes = first_bytes;
  return true;
}

bool HostMemory::join(Handle& first, const Handle& second) noexcept {
  MEMPOOL_EXPECTS(static_cast<char*>(first.address) + first.bytes == second.address);
  first.bytes += second.bytes;
  return true;
}

// Each move can leave one more mapping behind. Counting mappings reads a file of the kernel, so it is done for every
// 256th move.
bool HostMemory::mappings_are_within_budget() noexcept {
  constexpr std::uint32_t kMovesBetweenCounts = 256;
  if (moves_.fetch_add(1, std::memory_order_relaxed) % kMovesBetweenCounts == 0) {
    within_budget_.store(mapping_count() < most_mappings() / 2, std::memory_order_relaxed);
  }
  return within_budget_.load(std::memory_order_relaxed);
}

bool HostMemory::is_lost(const void* address, std::size_t bytes) noexcept {
  if (lost_count_.load(std::memory_order_acquire) == 0) [[likely]]
    return false;
  const auto* const start = static_cast<const char*>(address);
  const std::lock_guard guard(lost_mutex_);
  return std::any_of(lost_.begin(), lost_.begin() + lost_count_.load(),
                     [&](const Lost& lost) { return start < lost.start + lost.bytes && lost.start < start + bytes; });
}

Move HostMemory::move_part(char* from, char* to, std::size_t bytes) noexcept {
  const Move result = move_pages(from, to, bytes);
  if (result == Move::refused) advise_huge_pages(to, bytes, huge_pages_);  // it may be a new mapping
  if (result == Move::lost) {
    const std::lock_guard guard(lost_mutex_);
    MEMPOOL_EXPECTS(lost_count_.load() < kMostLost);
    lost_[lost_count_.load()] = {to, bytes};
    lost_count_.fetch_add(1, std::memory_order_release);
  }
  return result;
}

// For older kernels, which move one mapping at a time: a granule never has more than one.
bool HostMemory::move_by_granules(char* from, char* to, std::size_t bytes) noexcept {
  for (std::size_t done = 0; done < bytes; done += granule_) {
    if (move_part(from + done, to + done, granule_) == Move::done) continue;
    for (std::size_t back = done; back > 0; back -= granule_) {
      move_pages(to + back - granule_, from + back - granule_, granule_);
    }
    if (done > 0) shut_space(to, done);
    return false;
  }
  return true;
}

bool HostMemory::move(Handle& handle, void* to) noexcept {
  MEMPOOL_EXPECTS(support_.moves && is_on_granules(handle.address, handle.bytes) && is_on_granules(to, handle.bytes));
  if (!mappings_are_within_budget() || lost_count_.load() == kMostLost || is_lost(to, handle.bytes)) return false;
  auto* const source = static_cast<char*>(handle.address);
  auto* const target = static_cast<char*>(to);
  const bool moved = support_.across_mappings ? move_part(source, target, handle.bytes) == Move::done
                                              : move_by_granules(source, target, handle.bytes);
  if (!moved) return false;
  // Where that fails the source stays open: it is empty, and a commit there opens it anyway.
  shut_space(handle.address, handle.bytes);
  handle.address = to;
  return true;
}

std::unique_ptr<Backup> HostMemory::make_backup() noexcept { return make_file_backup(); }

}  // namespace mempool
