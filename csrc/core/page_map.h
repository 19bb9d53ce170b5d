// Address -> Span, for the first page of a block and for every page of a slab. A radix tree of three levels over 48
// bits of address. Readers take no lock; leaves are never freed.
//
// One map serves the whole process: an address belongs to one span whichever device or arena it came from.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/span.h"

namespace mempool {

class PageMap {
 public:
  static PageMap& instance();

  // The span that was set for the page of `address`, or nullptr. Never faults, whatever the address.
  Span* find(const void* address) const noexcept {
    const auto page = reinterpret_cast<std::uintptr_t>(address) / kPageBytes;
    if (page >> kPageBits != 0) return nullptr;
    const Middle* middle = root_[page >> (kMiddleBits + kLeafBits)].load(std::memory_order_acquire);
    if (middle == nullptr) return nullptr;
    const Leaf* leaf = (*middle)[(page >> kLeafBits) & ((1u << kMiddleBits) - 1)].load(std::memory_order_acquire);
    if (leaf == nullptr) return nullptr;
    return (*leaf)[page & ((1u << kLeafBits) - 1)].load(std::memory_order_acquire);
  }

  // Makes set() possible for the range. False when there is no memory for the tree or the range is beyond 48 bits.
  bool prepare(std::uintptr_t start, std::size_t bytes) noexcept;

  // Precondition: prepare() succeeded for the range. nullptr clears.
  void set(std::uintptr_t start, std::size_t bytes, Span* span) noexcept;

 private:
  static constexpr unsigned kPageBits = 36;  // 48 - 12
  static constexpr unsigned kLeafBits = 9;   // a leaf covers 2 MiB
  static constexpr unsigned kMiddleBits = 14;
  static constexpr unsigned kRootBits = kPageBits - kMiddleBits - kLeafBits;

  using Leaf = std::array<std::atomic<Span*>, std::size_t{1} << kLeafBits>;
  using Middle = std::array<std::atomic<Leaf*>, std::size_t{1} << kMiddleBits>;

  std::array<std::atomic<Middle*>, std::size_t{1} << kRootBits> root_{};
};

}  // namespace mempool
