#include "core/pages/slab_heap.h"

#include <bit>
#include <new>

#include "common/expects.h"
#include "core/pages/page_map.h"

namespace mempool {

void SlabHeap::link(Slab* slab) noexcept {
  Slab*& head = partial_[slab->size_class];
  slab->previous = nullptr;
  slab->next = head;
  if (head != nullptr) head->previous = slab;
  head = slab;
}

void SlabHeap::unlink(Slab* slab) noexcept {
  (slab->previous != nullptr ? slab->previous->next : partial_[slab->size_class]) = slab->next;
  if (slab->next != nullptr) slab->next->previous = slab->previous;
}

Slab* SlabHeap::make_slab(std::size_t size_class, const Supply& supply, Refusal& why) noexcept {
  return make_slab(size_class, why, [&](std::size_t bytes) { return pages_.allocate(bytes, supply, why); });
}

template <typename Obtain>
Slab* SlabHeap::make_slab(std::size_t size_class, Refusal& why, Obtain obtain) noexcept {
  const SizeClass& info = kSizeClasses[size_class];
  void* const record = ::operator new(sizeof(Slab) + info.blocks * sizeof(BlockTag), std::nothrow);
  if (record == nullptr) {
    why = Refusal::metadata;
    return nullptr;
  }
  Span* const span = obtain(info.slab_bytes);
  if (span == nullptr) {
    ::operator delete(record);
    return nullptr;
  }
  Slab* const slab = new (record) Slab;
  slab->span = span;
  slab->size_class = static_cast<std::uint32_t>(size_class);
  slab->free_blocks = info.blocks;
  for (std::uint32_t i = 0; i < info.blocks; ++i) {
    slab->free_bits[i / 64] |= std::uint64_t{1} << (i % 64);
    new (slab->tags() + i) BlockTag{kFreeTag, 0};
  }
  pages_.make_slab(span, slab);
  link(slab);
  return slab;
}

std::size_t SlabHeap::allocate(std::size_t size_class, SmallBlock* out, std::size_t count, const Supply& supply,
                               Refusal& why) noexcept {
  MEMPOOL_EXPECTS(size_class < kSmallClasses && count > 0);
  std::size_t filled = 0;
  while (filled < count) {
    Slab* slab = partial_[size_class];
    if (slab == nullptr) {
      // Beyond the first block only what lies ready is taken: a batch is a convenience, not a need.
      if (filled > 0) break;
      slab = make_slab(size_class, supply, why);
      if (slab == nullptr) break;
    }
    for (std::size_t word = 0; word < slab->free_bits.size() && filled < count && slab->free_blocks > 0; ++word) {
      while (slab->free_bits[word] != 0 && filled < count) {
        const auto bit = static_cast<std::uint32_t>(std::countr_zero(slab->free_bits[word]));
        slab->free_bits[word] &= slab->free_bits[word] - 1;
        --slab->free_blocks;
        const auto index = static_cast<std::uint32_t>(word * 64) + bit;
        out[filled++] = {slab->block(index), slab->tags() + index};
      }
    }
    if (slab->free_blocks == 0) unlink(slab);
  }
  return filled;
}

SmallBlock SlabHeap::allocate_at(std::size_t size_class, std::uintptr_t slab_start, std::uintptr_t address) noexcept {
  MEMPOOL_EXPECTS(size_class < kSmallClasses && address >= slab_start);
  Span* const span = PageMap::instance().find(reinterpret_cast<void*>(slab_start));  // NOLINT
  Slab* slab = span != nullptr && span->state == Span::State::slab ? span->slab : nullptr;
  if (span != nullptr && (slab == nullptr || slab->size_class != size_class || span->start != slab_start)) return {};
  Refusal why = Refusal::none;
  if (slab == nullptr) {
    slab = make_slab(size_class, why, [&](std::size_t bytes) { return pages_.allocate_at(slab_start, bytes); });
  }
  if (slab == nullptr) return {};
  const std::uint32_t index = index_in_slab(slab->info(), static_cast<std::uint32_t>(address - slab_start));
  const std::uint64_t bit = std::uint64_t{1} << (index % 64);
  if ((slab->free_bits[index / 64] & bit) == 0) return {};
  slab->free_bits[index / 64] &= ~bit;
  if (--slab->free_blocks == 0) unlink(slab);
  return {slab->block(index), slab->tags() + index};
}

void SlabHeap::free(const SmallBlock& block) noexcept {
  Slab* const slab = PageMap::instance().find(block.address)->slab;
  const auto index = static_cast<std::uint32_t>(block.tag - slab->tags());
  MEMPOOL_EXPECTS(block.address == slab->block(index));
  MEMPOOL_EXPECTS((slab->free_bits[index / 64] & std::uint64_t{1} << (index % 64)) == 0);
  *block.tag = BlockTag{kFreeTag, 0};
  slab->free_bits[index / 64] |= std::uint64_t{1} << (index % 64);
  if (slab->free_blocks++ == 0) link(slab);
  if (slab->free_blocks < slab->info().blocks) return;
  unlink(slab);
  pages_.free(slab->span);
  slab->~Slab();
  ::operator delete(slab);
}

std::string SlabHeap::check_invariants() const {
  for (std::size_t size_class = 0; size_class < partial_.size(); ++size_class) {
    const Slab* previous = nullptr;
    for (const Slab* slab = partial_[size_class]; slab != nullptr; previous = slab, slab = slab->next) {
      std::uint32_t bits = 0;
      for (const std::uint64_t word : slab->free_bits) bits += static_cast<std::uint32_t>(std::popcount(word));
      if (slab->size_class != size_class) return "slab in the list of another class";
      if (slab->previous != previous) return "broken list of slabs";
      if (bits != slab->free_blocks || bits == 0 || bits >= slab->info().blocks) return "free blocks of a slab";
      if (slab->span->state != Span::State::slab || slab->span->slab != slab) return "span of a slab";
    }
  }
  return {};
}

}  // namespace mempool
