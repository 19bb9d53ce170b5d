// Memory for large sparse tables: zeros that the system backs where they are first written.
#pragma once

#include <cstddef>

namespace mempool {

// nullptr when refused. (calloc clears what it has used before, and would touch all of it.)
void* map_zero_pages(std::size_t bytes) noexcept;
void unmap_zero_pages(void* address, std::size_t bytes) noexcept;

}  // namespace mempool
