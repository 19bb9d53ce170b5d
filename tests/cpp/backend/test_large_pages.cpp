// Pages of 16 and 64 KiB, as kernels for aarch64 have them: what works with small ones works with these. The suite of
// all backends runs in this program, too.
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <vector>

#include "backend/address_space.h"
#include "backend/host_info.h"
#include "backend/host_memory.h"
#include "backend/large_pages.h"
#include "check.h"
#include "core/allocator/caching_allocator.h"

using namespace mempool;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Whether the real kernel can move a page and leave its place mapped.
bool kernel_moves() {
  const std::size_t page = large_pages::played_page_bytes();
  auto* const space = static_cast<char*>(mmap(nullptr, 2 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(space != MAP_FAILED);
  constexpr int kFlags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  const bool moves = mremap(space, page, page, kFlags, space + page) == space + page;
  munmap(space, 2 * page);
  return moves;
}

}  // namespace

TEST(the_played_kernel_takes_whole_pages_alone) {
  const std::size_t page = page_bytes();
  CHECK_EQ(page, large_pages::played_page_bytes());
  auto* const space = static_cast<char*>(map_space(3 * page, page));
  CHECK(space != nullptr);
  if (page > large_pages::real_page_bytes()) {
    CHECK(mprotect(space + large_pages::real_page_bytes(), page, PROT_READ) == -1);
  }
  CHECK(mprotect(space + page, 1, PROT_READ | PROT_WRITE) == 0);
  std::memset(space + page, 3, page);  // all of the page
  unmap_space(space, 3 * page);
}

TEST(pages_of_any_size_move_where_the_kernel_moves_pages) {
  CHECK_EQ(probe_move_pages().moves, kernel_moves());
  CHECK_EQ(HostMemory(true).capabilities().can_move, kernel_moves());
}

TEST(an_allocator_stitches_and_gives_back_on_large_pages) {
  CachingAllocator allocator("host", std::make_unique<HostMemory>(true), {});
  std::vector<void*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(allocator.allocate(4 * kMiB));
  const std::size_t held = allocator.ledger().held();
  for (void* block : blocks) std::memset(block, 7, 4 * kMiB);
  for (std::size_t i = 0; i < blocks.size(); i += 2) allocator.deallocate(blocks[i]);
  void* const wide = allocator.allocate(16 * kMiB);
  std::memset(wide, 1, 16 * kMiB);
  if (kernel_moves()) {
    CHECK_EQ(allocator.ledger().held(), held);
    CHECK(allocator.stats().moves > 0);
  }
  for (std::size_t i = 1; i < blocks.size(); i += 2) {
    CHECK_EQ(static_cast<char*>(blocks[i])[3 * kMiB], 7);
    allocator.deallocate(blocks[i]);
  }
  allocator.deallocate(wide);
  CHECK_EQ(allocator.check_invariants(), "");
  allocator.trim(0);
  CHECK_EQ(allocator.ledger().held(), 0u);
}

TEST(only_huge_pages_that_fit_a_granule_are_asked_for) {
  const MoveSupport all{.moves = true, .across_mappings = true};
  for (const std::size_t huge_page : {std::size_t{0}, kMiB, 2 * kMiB, 32 * kMiB, 512 * kMiB}) {
    for (const bool wanted : {true, false}) {
      HostMemory memory(wanted, all, huge_page);
      CHECK_EQ(memory.granule_bytes(), huge_page == kMiB ? kMiB : 2 * kMiB);
      void* const space = memory.reserve_addresses(2 * kMiB);
      CHECK(space != nullptr);
      CHECK_EQ(large_pages::last_advice(), wanted && huge_page <= 2 * kMiB ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
      memory.free_addresses(space, 2 * kMiB);
    }
  }
}
