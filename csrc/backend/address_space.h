// The few calls to the operating system about address space, with their preconditions written once.
#pragma once

#include <cstddef>

namespace mempool {

// Private anonymous address space that no access may touch and that nothing backs; nullptr when refused. `alignment` is
// a power of two and a multiple of the system's page.
void* map_space(std::size_t bytes, std::size_t alignment) noexcept;
// Precondition: a range from map_space, whole or in parts.
void unmap_space(void* address, std::size_t bytes) noexcept;
// Makes a part readable and writable. Its pages come at the first touch.
bool open_space(void* address, std::size_t bytes) noexcept;
// Drops the pages of a part and makes it inaccessible again. False: nothing changed.
bool shut_space(void* address, std::size_t bytes) noexcept;
// Asks for transparent huge pages in the range, or for none. False where the kernel does not know them.
bool advise_huge_pages(void* address, std::size_t bytes, bool wanted) noexcept;

}  // namespace mempool
