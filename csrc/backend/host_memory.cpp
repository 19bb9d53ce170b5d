#include "backend/host_memory.h"

#include "backend/address_space.h"
#include "backend/file_backup.h"
#include "backend/host_info.h"

namespace mempool {

HostMemory::HostMemory(bool huge_pages) noexcept
    : huge_pages_(huge_pages), granule_(huge_page_bytes()), can_move_(can_move_pages()) {}

void* HostMemory::reserve(std::size_t bytes) noexcept {
  void* const address = map_space(bytes, granule_);
  // A kernel without huge pages refuses the advice: the memory works all the same.
  if (address != nullptr) advise_huge_pages(address, bytes, huge_pages_);
  return address;
}

void HostMemory::unreserve(void* address, std::size_t bytes) noexcept { unmap_space(address, bytes); }

bool HostMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  if (!open_space(address, bytes)) return false;
  out = {address, bytes, 0};
  return true;
}

bool HostMemory::decommit(const Handle& handle) noexcept { return shut_space(handle.address, handle.bytes); }

bool HostMemory::cut(Handle& handle, std::size_t first_bytes, Handle& rest) noexcept {
  rest = {static_cast<char*>(handle.address) + first_bytes, handle.bytes - first_bytes, 0};
  handle.bytes = first_bytes;
  return true;
}

bool HostMemory::join(Handle& first, const Handle& second) noexcept {
  first.bytes += second.bytes;
  return true;
}

// Each move can leave a mapping more behind. Counting them reads a file of the kernel, so only every so often.
bool HostMemory::mappings_are_within_budget() noexcept {
  constexpr std::uint32_t kMovesBetweenCounts = 256;
  if (moves_.fetch_add(1, std::memory_order_relaxed) % kMovesBetweenCounts == 0) {
    within_budget_.store(mapping_count() < most_mappings() / 2, std::memory_order_relaxed);
  }
  return within_budget_.load(std::memory_order_relaxed);
}

bool HostMemory::move(Handle& handle, void* to) noexcept {
  if (!mappings_are_within_budget()) return false;
  if (!move_pages(handle.address, to, handle.bytes)) {
    // A handle whose parts came from different places is several mappings, and older kernels move one at a time.
    char* const source = static_cast<char*>(handle.address);
    char* const target = static_cast<char*>(to);
    for (std::size_t done = 0; done < handle.bytes; done += granule_) {
      if (move_pages(source + done, target + done, granule_)) continue;
      for (; done > 0; done -= granule_) move_pages(target + done - granule_, source + done - granule_, granule_);
      return false;
    }
  }
  shut_space(handle.address, handle.bytes);
  handle.address = to;
  return true;
}

std::unique_ptr<Backup> HostMemory::make_backup() noexcept { return make_file_backup(); }

}  // namespace mempool
