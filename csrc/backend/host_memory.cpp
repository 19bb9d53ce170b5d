#include "backend/host_memory.h"

#include <sys/mman.h>

#include "backend/address_space.h"
#include "backend/host_info.h"

namespace mempool {

HostMemory::HostMemory(bool huge_pages) noexcept : huge_pages_(huge_pages), granule_(huge_page_bytes()) {}

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

bool HostMemory::move(Handle& handle, void* to) noexcept {
  // The page tables move, not the bytes. The source must become a reservation again at once, before another thread's
  // mmap can land in the gap: DONTUNMAP leaves it mapped and empty.
  void* const moved =
      mremap(handle.address, handle.bytes, handle.bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
  if (moved == MAP_FAILED) return false;
  mprotect(handle.address, handle.bytes, PROT_NONE);
  handle.address = to;
  return true;
}

}  // namespace mempool
