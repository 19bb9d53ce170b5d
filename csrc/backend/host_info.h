// What the machine and its limits allow this process: memory, pages, huge pages.
#pragma once

#include <cstddef>
#include <string>

namespace mempool {

// The size of the system's page: the kernel maps, moves and drops whole ones only. 4 KiB on x86-64; 4, 16 or 64 KiB on
// aarch64. The core's unit for spans, kPageBytes, is another thing.
std::size_t page_bytes() noexcept;

// The size of a transparent huge page, which grows with the square of the page: 2 MiB, 32 MiB or 512 MiB. 0 where the
// system has none. `root` is a prefix of each path, for tests.
std::size_t huge_page_bytes(const std::string& root = "") noexcept;

// Whether the kernel gives huge pages to memory that asks for them ("always" or "madvise").
bool huge_pages_available() noexcept;

// The bytes of memory that this process may use: the smallest of MemTotal, memory.max of every enclosing control group
// (version 1 too), and RLIMIT_AS. Each call reads them anew. `root` is a prefix of each path, for tests.
std::size_t usable_memory_bytes(const std::string& root = "");

}  // namespace mempool
