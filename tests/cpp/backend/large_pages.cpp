#include "backend/large_pages.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>

namespace {

int advice_given = -1;

std::uintptr_t number_of(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }
std::size_t on_page(std::size_t bytes) {
  const std::size_t page = large_pages::played_page_bytes();
  return (bytes + page - 1) / page * page;
}
bool is_on_page(const void* address) { return number_of(address) % large_pages::played_page_bytes() == 0; }
long refused() {
  errno = EINVAL;
  return -1;
}
void* as_address(long result) { return reinterpret_cast<void*>(result); }

}  // namespace

namespace large_pages {

std::size_t real_page_bytes() noexcept { return static_cast<std::size_t>(getpagesize()); }

std::size_t played_page_bytes() noexcept {
  static const std::size_t bytes = [] {
    const char* const given = std::getenv("MEMPOOL_TEST_PAGE_BYTES");
    return std::max(real_page_bytes(), given != nullptr ? std::strtoul(given, nullptr, 10) : std::size_t{16} << 10);
  }();
  return bytes;
}

int last_advice() noexcept { return advice_given; }

}  // namespace large_pages

extern "C" {

long sysconf(int name) noexcept {
  static auto* const real = reinterpret_cast<long (*)(int)>(dlsym(RTLD_NEXT, "sysconf"));
  return name == _SC_PAGESIZE ? static_cast<long>(large_pages::played_page_bytes()) : real(name);
}

void* mmap(void* address, std::size_t bytes, int access, int flags, int file, off_t offset) noexcept {
  const std::size_t page = large_pages::played_page_bytes();
  const bool is_placed = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0;
  if ((is_placed && !is_on_page(address)) || static_cast<std::size_t>(offset) % page != 0) {
    return as_address(refused());
  }
  if (is_placed || page == large_pages::real_page_bytes()) {
    return as_address(syscall(SYS_mmap, address, on_page(bytes), access, flags, file, offset));
  }
  // A place on a page of the played size, for which more is asked than is needed.
  constexpr int kSpace = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const long space = syscall(SYS_mmap, nullptr, on_page(bytes) + page, PROT_NONE, kSpace, -1, 0);
  if (space == -1) return MAP_FAILED;
  const std::size_t before = on_page(static_cast<std::size_t>(space)) - static_cast<std::size_t>(space);
  const long start = space + static_cast<long>(before);
  if (before > 0) syscall(SYS_munmap, space, before);
  syscall(SYS_munmap, start + static_cast<long>(on_page(bytes)), page - before);
  return as_address(syscall(SYS_mmap, start, on_page(bytes), access, flags | MAP_FIXED, file, offset));
}

int munmap(void* address, std::size_t bytes) noexcept {
  return static_cast<int>(is_on_page(address) ? syscall(SYS_munmap, address, on_page(bytes)) : refused());
}

int mprotect(void* address, std::size_t bytes, int access) noexcept {
  return static_cast<int>(is_on_page(address) ? syscall(SYS_mprotect, address, on_page(bytes), access) : refused());
}

int madvise(void* address, std::size_t bytes, int advice) noexcept {
  if (advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE) advice_given = advice;
  return static_cast<int>(is_on_page(address) ? syscall(SYS_madvise, address, on_page(bytes), advice) : refused());
}

void* mremap(void* address, std::size_t bytes, std::size_t new_bytes, int flags, ...) noexcept {
  void* target = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list more;
    va_start(more, flags);
    target = va_arg(more, void*);
    va_end(more);
  }
  if (!is_on_page(address) || !is_on_page(target)) return as_address(refused());
  return as_address(syscall(SYS_mremap, address, on_page(bytes), on_page(new_bytes), flags, target));
}

}  // extern "C"
