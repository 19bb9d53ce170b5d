// The few calls to the operating system about address space, with their preconditions written once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mempool {

// Private anonymous address space that no access may touch and that nothing backs; nullptr when refused. `alignment` is
// a power of two and a multiple of the system's page.
void* map_space(std::size_t bytes, std::size_t alignment) noexcept;
// Precondition: a range from map_space, whole or in parts.
void unmap_space(void* address, std::size_t bytes) noexcept;
// Makes a part readable and writable. Its pages come at the first touch.
bool open_space(void* address, std::size_t bytes) noexcept;
// Drops the pages of a part that is open in full and makes it inaccessible again. False: it is open as it was.
bool shut_space(void* address, std::size_t bytes) noexcept;
// Whether this kernel can move pages and leave the source mapped (5.7 and newer; not under valgrind), and whether a
// source of several mappings moves in one call.
struct MoveSupport {
  bool moves = false;
  bool across_mappings = false;
};
MoveSupport probe_move_pages() noexcept;
// Moves pages to another place in address space from map_space, contents and all; page tables change, no byte is
// copied. The source stays mapped and empty, so that nothing else can land there.
enum class Move : std::uint8_t {
  done,
  refused,  // the source is whole, the target is as it was
  lost,     // the source is whole, but the target is no longer ours: another thread's mapping may lie there
};
Move move_pages(void* from, void* to, std::size_t bytes) noexcept;
// Mappings of this process now, and the most that the kernel allows. 0 and SIZE_MAX where that is not known.
std::size_t mapping_count() noexcept;
std::size_t most_mappings() noexcept;
// Asks for transparent huge pages in the range, or for none. False where the kernel does not know them.
bool advise_huge_pages(void* address, std::size_t bytes, bool wanted) noexcept;

}  // namespace mempool
