#include "backend/address_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

#include "backend/host_info.h"
#include "common/align.h"
#include "common/expects.h"

namespace mempool {

namespace {

bool is_on_pages(const void* address, std::size_t bytes) noexcept {
  return bytes > 0 && (reinterpret_cast<std::uintptr_t>(address) | bytes) % page_bytes() == 0;
}

}  // namespace

void* map_space(std::size_t bytes, std::size_t alignment) noexcept {
  MEMPOOL_EXPECTS(std::has_single_bit(alignment) && alignment % page_bytes() == 0);
  if (bytes == 0 || rounds_past_max(bytes, alignment)) return nullptr;
  // MAP_NORESERVE is left out on purpose. The kernel accounts for nothing while no access is allowed, and checks when a
  // part is opened whether it can ever back that. With the flag a request larger than the machine would succeed, and
  // its process would be killed at the first touch.
  // The kernel aligns to its own page only: reserve more, and give the ends back.
  const std::size_t padded = bytes + alignment;
  void* const raw = mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t start = align_up(begin, alignment);
  if (start > begin) munmap(raw, start - begin);
  const std::uintptr_t end = begin + padded;
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (end > start + bytes) munmap(reinterpret_cast<void*>(start + bytes), end - (start + bytes));
  return reinterpret_cast<void*>(start);  // NOLINT(performance-no-int-to-ptr)
}

void unmap_space(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_pages(address, bytes));
  munmap(address, bytes);
}

bool open_space(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_pages(address, bytes));
  return mprotect(address, bytes, PROT_READ | PROT_WRITE) == 0;
}

namespace {

// Whether all of the range is mapped and inaccessible: our own reserved space is, and hardly any other mapping.
bool is_inaccessible(const void* address, std::size_t bytes) noexcept {
  std::FILE* const file = std::fopen("/proc/self/maps", "re");
  if (file == nullptr) return false;
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  std::uintptr_t covered = start;
  unsigned long low = 0;
  unsigned long high = 0;
  std::array<char, 8> access{};
  while (covered < start + bytes && std::fscanf(file, "%lx-%lx %7s%*[^\n]", &low, &high, access.data()) == 3) {
    if (high <= covered) continue;
    if (low > covered || access[0] != '-' || access[1] != '-') break;
    covered = high;
  }
  std::fclose(file);
  return covered >= start + bytes;
}

}  // namespace

bool shut_space(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_pages(address, bytes));
  // The protection comes first: changing it can fail, since a split mapping may pass the system's limit. It may have
  // changed the first of several mappings by then; opening these again needs no new mapping, as it merges them.
  if (mprotect(address, bytes, PROT_NONE) != 0) {
    open_space(address, bytes);
    return false;
  }
  if (madvise(address, bytes, MADV_DONTNEED) == 0) return true;
  open_space(address, bytes);
  return false;
}

Move move_pages(void* from, void* to, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_pages(from, bytes) && is_on_pages(to, bytes));
  if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to) return Move::done;
  // The kernel may have unmapped the target before it refused. Mapping the target again fails where it is still mapped:
  // by us, or by a thread that was faster.
  void* const again = mmap(to, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (again == to) return Move::refused;
  if (again != MAP_FAILED) munmap(again, bytes);  // an old kernel took the address for a hint
  // A target of ours is never open: if it can be accessed, another thread has mapped it.
  return is_inaccessible(to, bytes) ? Move::refused : Move::lost;
}

MoveSupport probe_move_pages() noexcept {
  const std::size_t page = page_bytes();
  MoveSupport support;
  auto* const space = static_cast<char*>(map_space(8 * page, page));
  if (space == nullptr) return support;
  // Two pages from different places, so that they are two mappings.
  if (open_space(space, 3 * page)) {
    space[0] = 1;
    space[2 * page] = 2;
    char* const both = space + 4 * page;
    support.moves = move_pages(space, both, page) == Move::done && both[0] == 1;
    if (support.moves && move_pages(space + 2 * page, both + page, page) == Move::done) {
      char* const target = space + 6 * page;
      support.across_mappings = move_pages(both, target, 2 * page) == Move::done && target[0] == 1 && target[page] == 2;
    }
  }
  unmap_space(space, 8 * page);
  return support;
}

std::size_t mapping_count() noexcept {
  std::FILE* const file = std::fopen("/proc/self/maps", "re");
  if (file == nullptr) return 0;
  std::size_t lines = 0;
  std::array<char, 65536> buffer{};
  for (std::size_t got = 0; (got = std::fread(buffer.data(), 1, buffer.size(), file)) > 0;) {
    lines += static_cast<std::size_t>(std::count(buffer.data(), buffer.data() + got, '\n'));
  }
  std::fclose(file);
  return lines;
}

std::size_t most_mappings() noexcept {
  std::FILE* const file = std::fopen("/proc/sys/vm/max_map_count", "re");
  if (file == nullptr) return SIZE_MAX;
  std::size_t most = 0;
  const bool read = std::fscanf(file, "%zu", &most) == 1;
  std::fclose(file);
  return read ? most : SIZE_MAX;
}

bool advise_huge_pages(void* address, std::size_t bytes, bool wanted) noexcept {
  return madvise(address, bytes, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0;
}

}  // namespace mempool
