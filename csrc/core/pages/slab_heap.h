// Small blocks of one arena, cut from slabs: spans that hold blocks of one size class. Not thread-safe: the arena's
// mutex guards it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/pages/page_heap.h"
#include "core/pages/size_classes.h"

namespace mempool {

inline constexpr std::size_t kMaxBlocksInSlab = 1024;

// A span cut into blocks of one size. The tags of its blocks lie behind the record.
struct Slab {
  Span* span = nullptr;
  std::uint32_t size_class = 0;
  std::uint32_t free_blocks = 0;
  Slab* previous = nullptr;  // links of the class's list of slabs with a free block
  Slab* next = nullptr;
  std::array<std::uint64_t, kMaxBlocksInSlab / 64> free_bits{};

  const SizeClass& info() const { return kSizeClasses[size_class]; }
  BlockTag* tags() { return reinterpret_cast<BlockTag*>(this + 1); }
  const BlockTag* tags() const { return reinterpret_cast<const BlockTag*>(this + 1); }
  void* block(std::uint32_t index) const {
    return reinterpret_cast<void*>(span->start + std::size_t{index} * info().block_bytes);  // NOLINT
  }
};

// A free small block together with its tag, so that handing it out needs no look-up.
struct SmallBlock {
  void* address = nullptr;
  BlockTag* tag = nullptr;
};

class SlabHeap {
 public:
  explicit SlabHeap(PageHeap& pages) : pages_(pages) {}

  // Fills `out` with up to `count` free blocks, of which there is at least one; at least one is filled unless refused.
  // `supply` as for PageHeap::allocate.
  std::size_t allocate(std::size_t size_class, SmallBlock* out, std::size_t count, const Supply& supply,
                       Refusal& why) noexcept;
  // The block of that class at exactly that place, in a slab that begins at `slab_start`. Its address is nullptr when
  // it is not free.
  SmallBlock allocate_at(std::size_t size_class, std::uintptr_t slab_start, std::uintptr_t address) noexcept;
  // Takes a block back; an empty slab returns to the pages at once. The tag is marked free.
  void free(const SmallBlock& block) noexcept;

  std::string check_invariants() const;

 private:
  Slab* make_slab(std::size_t size_class, const Supply& supply, Refusal& why) noexcept;
  template <typename Obtain>
  Slab* make_slab(std::size_t size_class, Refusal& why, Obtain obtain) noexcept;
  void link(Slab* slab) noexcept;
  void unlink(Slab* slab) noexcept;

  PageHeap& pages_;
  std::array<Slab*, kSmallClasses> partial_{};
};

}  // namespace mempool
