#include "backend/address_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

#include "common/align.h"

namespace mempool {

void* map_space(std::size_t bytes, std::size_t alignment) noexcept {
  if (bytes == 0 || rounds_past_max(bytes, alignment)) return nullptr;
  // Without MAP_NORESERVE: nothing is accounted for while no access is allowed, and opening a part then asks the kernel
  // whether it can ever be backed. With it, a request larger than the machine would succeed and be killed at its touch.
  // The kernel aligns to its own page: reserve more and give the ends back.
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

void unmap_space(void* address, std::size_t bytes) noexcept { munmap(address, bytes); }

bool open_space(void* address, std::size_t bytes) noexcept {
  return mprotect(address, bytes, PROT_READ | PROT_WRITE) == 0;
}

bool shut_space(void* address, std::size_t bytes) noexcept {
  // Protection first: it can fail (a mapping more may pass the system's limit), dropping the pages then cannot.
  if (mprotect(address, bytes, PROT_NONE) != 0) return false;
  if (madvise(address, bytes, MADV_DONTNEED) == 0) return true;
  open_space(address, bytes);
  return false;
}

bool move_pages(void* from, void* to, std::size_t bytes) noexcept {
  return mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to;
}

bool can_move_pages() noexcept {
  constexpr std::size_t kPage = 4096;
  auto* const space = static_cast<char*>(map_space(2 * kPage, kPage));
  if (space == nullptr) return false;
  bool works = open_space(space, kPage);
  if (works) {
    *space = 1;
    works = move_pages(space, space + kPage, kPage) && space[kPage] == 1;
  }
  unmap_space(space, 2 * kPage);
  return works;
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
