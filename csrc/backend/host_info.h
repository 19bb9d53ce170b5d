// What the machine and its limits allow this process: memory, huge pages.
#pragma once

#include <cstddef>
#include <string>

namespace mempool {

// The size of a transparent huge page, or 2 MiB where the system has none or a larger one.
std::size_t huge_page_bytes() noexcept;

// Whether the kernel gives huge pages to memory that asks for them ("always" or "madvise").
bool huge_pages_available() noexcept;

// The bytes of memory that this process may use: the smallest of MemTotal, memory.max of every enclosing control group
// (version 1 too), and RLIMIT_AS. Each call reads them anew. `root` is a prefix of each path, for tests.
std::size_t usable_memory_bytes(const std::string& root = "");

}  // namespace mempool
