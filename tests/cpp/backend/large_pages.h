// A kernel with larger pages, played on one with smaller: the C library's calls about memory and the size of a page are
// defined anew for the whole test program, also for libmempool.so. They take whole pages of the played size alone, as
// such a kernel would, and hand the work to the real one.
#pragma once

#include <cstddef>

namespace large_pages {

// The real kernel's, and the played one's: MEMPOOL_TEST_PAGE_BYTES in the environment, or 16 KiB; never smaller than
// the real one's.
std::size_t real_page_bytes() noexcept;
std::size_t played_page_bytes() noexcept;

// The advice about huge pages that was given last.
int last_advice() noexcept;

}  // namespace large_pages
