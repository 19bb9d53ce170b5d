// Size classes and rounding: how many bytes a request costs, and which slabs small blocks are cut from.
//
//   up to 1 KiB      next multiple of 64
//   up to 32 KiB     next of 8 steps in each doubling (at most 12.5% more than asked)
//   above            next multiple of 4 KiB
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/expects.h"
#include "core/pages/span.h"

namespace mempool {

inline constexpr std::size_t kMinAlignment = 64;
inline constexpr std::size_t kSmallClasses = 56;

inline constexpr std::size_t kSlabBytes = std::size_t{64} << 10;  // at least

struct SizeClass {
  std::uint32_t block_bytes;
  std::uint32_t slab_bytes;  // a multiple of kPageBytes, kSlabBytes to twice that, chosen for the least tail
  std::uint32_t blocks;      // in one slab
  std::uint32_t reciprocal;  // ceil(2^32 / block_bytes): index_in_slab() divides by multiplying
};

// Every class with the slab that it is cut from.
constexpr std::array<SizeClass, kSmallClasses> make_size_classes() {
  std::array<SizeClass, kSmallClasses> classes{};
  std::size_t block = 0;
  for (SizeClass& out : classes) {
    // 64 apart up to 1 KiB, then an eighth of the power of two below.
    std::size_t step = 64;
    while (step * 16 <= block) step *= 2;
    block += step;
    std::size_t best = kSlabBytes;
    for (std::size_t slab = best; slab <= 2 * kSlabBytes; slab += kPageBytes) {
      if ((slab % block) * best < (best % block) * slab) best = slab;
    }
    out.block_bytes = static_cast<std::uint32_t>(block);
    out.slab_bytes = static_cast<std::uint32_t>(best);
    out.blocks = static_cast<std::uint32_t>(best / block);
    out.reciprocal = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + block - 1) / block);
  }
  return classes;
}

inline constexpr std::array<SizeClass, kSmallClasses> kSizeClasses = make_size_classes();
static_assert(kSizeClasses.back().block_bytes == kSmallMax);

// By the number of whole kMinAlignment in (bytes - 1): each block is a multiple of it.
constexpr std::array<std::uint8_t, kSmallMax / kMinAlignment> make_class_table() {
  std::array<std::uint8_t, kSmallMax / kMinAlignment> table{};
  std::uint8_t size_class = 0;
  for (std::size_t i = 0; i < table.size(); ++i) {
    if ((i + 1) * kMinAlignment > kSizeClasses[size_class].block_bytes) ++size_class;
    table[i] = size_class;
  }
  return table;
}
inline constexpr std::array<std::uint8_t, kSmallMax / kMinAlignment> kClassTable = make_class_table();

// Of a small request: more than 0 and at most kSmallMax bytes.
constexpr std::size_t size_class_of(std::size_t bytes) {
  MEMPOOL_EXPECTS(bytes > 0 && bytes <= kSmallMax);
  return kClassTable[(bytes - 1) / kMinAlignment];
}

// Bytes that a request is charged. It has more than 0, and so few that a page more does not overflow.
constexpr std::size_t round_block(std::size_t bytes) {
  MEMPOOL_EXPECTS(bytes > 0 && bytes <= SIZE_MAX - kPageBytes);
  if (bytes <= 1024) return (bytes + 63) & ~std::size_t{63};
  if (bytes <= kSmallMax) {
    const unsigned shift = 63u - static_cast<unsigned>(__builtin_clzll(bytes - 1));
    const std::size_t step = std::size_t{1} << (shift - 3);
    return (bytes + step - 1) & ~(step - 1);
  }
  return (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
}

// Which block of a slab begins at (or holds) `offset`.
inline std::uint32_t index_in_slab(const SizeClass& size_class, std::uint32_t offset) {
  return static_cast<std::uint32_t>((std::uint64_t{offset} * size_class.reciprocal) >> 32);
}
// Whether a block of a slab begins at `offset`: the lower half of the product is the remainder, scaled. Source:
// D. Lemire, O. Kaser, N. Kurz, "Faster remainder by direct computation", 2019.
inline bool begins_block(const SizeClass& size_class, std::uint32_t offset) {
  return offset * size_class.reciprocal < size_class.reciprocal;
}

}  // namespace mempool
