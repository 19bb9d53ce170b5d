#include "common/zero_pages.h"

#include <sys/mman.h>

namespace mempool {

void* map_zero_pages(std::size_t bytes) noexcept {
  void* const address =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  madvise(address, bytes, MADV_NOHUGEPAGE);  // with huge pages a sparse table would hold far more than it uses
  return address;
}

void unmap_zero_pages(void* address, std::size_t bytes) noexcept { munmap(address, bytes); }

}  // namespace mempool
