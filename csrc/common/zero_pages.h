// Memory for large sparse tables: it reads as zeros, and the system backs a page of it when that is first written.
#pragma once

#include <cstddef>

namespace mempool {

// nullptr when refused. (calloc clears memory that it hands out again, and so would touch all of it.)
void* map_zero_pages(std::size_t bytes) noexcept;
void unmap_zero_pages(void* address, std::size_t bytes) noexcept;

}  // namespace mempool
