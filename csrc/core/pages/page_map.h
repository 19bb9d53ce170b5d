// The page map: address -> Span, for the first page of a block and for every page of a slab. Readers take no lock, and
// no table is ever freed.
//
// Two tables for each GiB of address. As no two blocks of more than kMediumMax can begin in one MiB, those have a table
// with one entry a MiB, which stays in the cache however much memory there is. All others have one with an entry a
// page, made of zero pages that the system backs where they are first written.
//
// One map serves the whole process: an address belongs to one span whichever device or arena it came from.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "common/expects.h"
#include "core/pages/span.h"

namespace mempool {

class PageMap {
 public:
  constexpr PageMap() noexcept = default;
  static PageMap& instance() noexcept { return instance_; }

  // The span of the block or slab at `address`: the page of `address` is the first of a block, or one of a slab. Else
  // nullptr. Never faults, whatever the address. It lies on the way of every free.
  [[gnu::always_inline]] Span* find(const void* address) const noexcept {
    const auto value = reinterpret_cast<std::uintptr_t>(address);
    if (value >> kAddressBits != 0) return nullptr;
    const Tables& tables = root_[value >> kTableBits];
    const Large* large = tables.large.load(std::memory_order_acquire);
    if (large == nullptr) return nullptr;
    const std::uintptr_t entry = (*large)[large_entry(value)].load(std::memory_order_acquire);
    if (entry != 0 && entry >> kPointerBits == page_in_entry(value)) return pointer_of(entry);
    return (*tables.pages.load(std::memory_order_acquire))[page_entry(value)].load(std::memory_order_acquire);
  }

  // Makes setting possible for the range. False when there is no memory for it or the range is beyond 48 bits.
  bool prepare(std::uintptr_t start, std::size_t bytes) noexcept;

  // In a range that prepare() succeeded for. `to`: the span itself, or nullptr to clear.
  void set_block(const Span& span, Span* to) noexcept {
    MEMPOOL_EXPECTS((to == nullptr || to == &span) && is_prepared(span.start));
    if (span.bytes > kMediumMax) {
      Large& large = *root_[span.start >> kTableBits].large.load(std::memory_order_relaxed);
      const std::uintptr_t entry =
          to != nullptr ? page_in_entry(span.start) << kPointerBits | reinterpret_cast<std::uintptr_t>(to) : 0;
      large[large_entry(span.start)].store(entry, std::memory_order_release);
    } else {
      set_page(span.start, to);
    }
  }
  void set_slab(const Span& span, Span* to) noexcept {
    MEMPOOL_EXPECTS((to == nullptr || to == &span) && is_prepared(span.start) && is_prepared(span.end() - 1));
    for (std::uintptr_t page = span.start; page < span.end(); page += kPageBytes) set_page(page, to);
  }

 private:
  static constexpr unsigned kAddressBits = 48;
  static constexpr unsigned kTableBits = 30;
  static constexpr std::size_t kTableBytes = std::size_t{1} << kTableBits;
  static_assert(kMediumMax == std::size_t{1} << 20, "an entry of the table of large blocks covers so much");

  using Entry = std::atomic<Span*>;
  // The page where the block begins within its MiB stands above the pointer: whose the entry is must be seen without a
  // look at the span, which may be another block's and just be freed.
  static constexpr unsigned kPointerBits = 56;
  using Large = std::array<std::atomic<std::uintptr_t>, kTableBytes / kMediumMax>;
  using Pages = std::array<Entry, kTableBytes / kPageBytes>;
  struct Tables {
    std::atomic<Large*> large{nullptr};  // set last: with it the other is there too
    std::atomic<Pages*> pages{nullptr};
  };

  bool is_prepared(std::uintptr_t address) const noexcept {
    return root_[address >> kTableBits].large.load(std::memory_order_relaxed) != nullptr;
  }
  static std::size_t large_entry(std::uintptr_t address) { return (address % kTableBytes) / kMediumMax; }
  static std::uintptr_t page_in_entry(std::uintptr_t address) { return (address % kMediumMax) / kPageBytes; }
  static Span* pointer_of(std::uintptr_t entry) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<Span*>(entry & ((std::uintptr_t{1} << kPointerBits) - 1));
  }
  static std::size_t page_entry(std::uintptr_t address) { return (address % kTableBytes) / kPageBytes; }
  void set_page(std::uintptr_t address, Span* to) noexcept {
    Pages& pages = *root_[address >> kTableBits].pages.load(std::memory_order_relaxed);
    pages[page_entry(address)].store(to, std::memory_order_release);
  }

  static PageMap instance_;  // in zero pages; frees may come after static destruction, and it has no destructor

  std::array<Tables, std::size_t{1} << (kAddressBits - kTableBits)> root_{};
};

}  // namespace mempool
