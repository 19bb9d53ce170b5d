// The calls to the operating system about address space: reserving it, opening parts of it, moving pages within it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool {

// Reserves private anonymous address space: an access to it faults, and no memory backs it. nullptr when refused.
// `alignment` is a power of two and a multiple of the system's page.
void* map_space(std::size_t bytes, std::size_t alignment) noexcept;
// The calls below take a range that map_space() returned, or a part of one, on whole pages.

// Gives the address space back.
void unmap_space(void* address, std::size_t bytes) noexcept;
// Makes the range readable and writable. The kernel backs each page at its first touch.
bool open_space(void* address, std::size_t bytes) noexcept;
// Drops the pages of a range, all of which is open, and makes it inaccessible again. False: it is open as it was.
bool shut_space(void* address, std::size_t bytes) noexcept;
struct MoveSupport {
  bool moves = false;            // the kernel can move pages and leave the source mapped (5.7 and newer; not valgrind)
  bool across_mappings = false;  // it moves a source of several mappings in one call
};
// What this kernel can do, found out by trying.
MoveSupport probe_move_pages() noexcept;
// Moves pages with their contents to another range: page tables change, no byte is copied. The source stays mapped and
// empty, so that nothing else can be mapped there.
enum class Move : std::uint8_t {
  done,
  refused,  // the source is whole, the target is as it was
  lost,     // the source is whole, but the target is no longer ours: another thread's mapping may lie there
};
Move move_pages(void* from, void* to, std::size_t bytes) noexcept;
// How many mappings this process has now; 0 where that is not known.
std::size_t mapping_count() noexcept;
// The most mappings that the kernel allows a process; SIZE_MAX where that is not known.
std::size_t most_mappings() noexcept;
// Asks for transparent huge pages in the range, or for none. False where the kernel does not know them.
bool advise_huge_pages(void* address, std::size_t bytes, bool wanted) noexcept;

}  // namespace mempool
