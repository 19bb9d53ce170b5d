#include "core/pages/free_index.h"

#include <algorithm>
#include <bit>
#include <climits>

#include "common/expects.h"
#include "core/pages/policy.h"

namespace mempool {
namespace {

std::uint64_t from_bit(std::size_t bit) { return ~std::uint64_t{0} << bit; }
std::uint64_t up_to_bit(std::size_t bit) { return ~std::uint64_t{0} >> (63 - bit); }
std::size_t lowest(std::uint64_t word) { return static_cast<std::size_t>(std::countr_zero(word)); }
std::size_t highest(std::uint64_t word) { return 63 - static_cast<std::size_t>(std::countl_zero(word)); }

}  // namespace

std::size_t FreeIndex::bin_of(std::size_t key) noexcept {
  const std::size_t pages = key / kPageBytes;
  if (pages <= kExactPages) return pages;
  const auto order = static_cast<std::size_t>(std::bit_width(pages) - 1);
  const std::size_t step = (pages >> (order - kStepBits)) & ((std::size_t{1} << kStepBits) - 1);
  return kExactPages + 1 + ((order - kExactBits) << kStepBits) + step;
}

std::size_t FreeIndex::bin_above(std::size_t bin) const noexcept {
  std::size_t word = bin / 64;
  if (const std::uint64_t here = bits_[word] & from_bit(bin % 64); here != 0) return word * 64 + lowest(here);
  if (word + 1 >= kWords) return kBins;
  const std::uint64_t above = summary_ & from_bit(word + 1);
  if (above == 0) return kBins;
  word = lowest(above);
  return word * 64 + lowest(bits_[word]);
}

std::size_t FreeIndex::bin_below(std::size_t bin) const noexcept {
  std::size_t word = bin / 64;
  if (const std::uint64_t here = bits_[word] & up_to_bit(bin % 64); here != 0) return word * 64 + highest(here);
  if (word == 0) return kBins;
  const std::uint64_t below = summary_ & up_to_bit(word - 1);
  if (below == 0) return kBins;
  word = highest(below);
  return word * 64 + highest(bits_[word]);
}

void FreeIndex::insert(Span* span) noexcept {
  const std::size_t own_key = key(*span);
  if (own_key == 0) return;
  MEMPOOL_EXPECTS(!holds(*span));
  const std::size_t bin = bin_of(own_key);
  IndexLinks& own = span->links[links_];
  Span*& head = heads_[bin];
  own = {head, nullptr, static_cast<std::uint32_t>(bin)};
  if (head != nullptr) head->links[links_].previous = span;
  head = span;
  bits_[bin / 64] |= std::uint64_t{1} << (bin % 64);
  summary_ |= std::uint64_t{1} << (bin / 64);
  ++count_;
  bytes_ += own_key;
}

void FreeIndex::erase(Span* span) noexcept {
  IndexLinks& own = span->links[links_];
  const std::size_t bin = own.bin;
  MEMPOOL_EXPECTS(bin != 0 && bin == bin_of(key(*span)));
  if (own.next != nullptr) own.next->links[links_].previous = own.previous;
  (own.previous != nullptr ? own.previous->links[links_].next : heads_[bin]) = own.next;
  if (heads_[bin] == nullptr) {
    bits_[bin / 64] &= ~(std::uint64_t{1} << (bin % 64));
    if (bits_[bin / 64] == 0) summary_ &= ~(std::uint64_t{1} << (bin / 64));
  }
  --count_;
  bytes_ -= key(*span);
  own = {};
}

// The smallest that fits among the first of a bin; the lowest address among equals.
Span* FreeIndex::fitting_in(std::size_t bin, std::size_t bytes, int most_looked_at) const noexcept {
  Span* found = nullptr;
  std::size_t found_key = SIZE_MAX;
  for (Span* span = heads_[bin]; span != nullptr && most_looked_at > 0; --most_looked_at) {
    const std::size_t own_key = key(*span);
    const bool better = own_key < found_key || (own_key == found_key && span->start < found->start);
    if (own_key >= bytes && better) {
      found = span;
      found_key = own_key;
    }
    span = span->links[links_].next;
  }
  return found;
}

Span* FreeIndex::best_fit(std::size_t bytes) const noexcept {
  const std::size_t own = bin_of(bytes);
  std::size_t bin = bin_above(own);
  if (bin == own) {
    if (Span* const found = fitting_in(own, bytes, policy::kFitLooks)) return found;
    bin = bin_above(own + 1);
    // The rest of the own bin matters only where nothing larger is free.
    if (bin == kBins) return fitting_in(own, bytes, INT_MAX);
  }
  return bin == kBins ? nullptr : fitting_in(bin, bytes, policy::kFitLooks);
}

Span* FreeIndex::first_of_highest() const noexcept {
  const std::size_t bin = bin_below(kBins - 1);
  return bin == kBins ? nullptr : heads_[bin];
}

Span* FreeIndex::next_down(const Span* span) const noexcept {
  const IndexLinks& own = span->links[links_];
  if (own.next != nullptr) return own.next;
  const std::size_t bin = own.bin == 0 ? kBins : bin_below(own.bin - 1);
  return bin == kBins ? nullptr : heads_[bin];
}

Span* FreeIndex::first_from(std::size_t bytes) const noexcept {
  const std::size_t bin = bin_above(bin_of(bytes));
  return bin == kBins ? nullptr : heads_[bin];
}

Span* FreeIndex::next_up(const Span* span) const noexcept {
  const IndexLinks& own = span->links[links_];
  if (own.next != nullptr) return own.next;
  const std::size_t bin = own.bin + 1 < kBins ? bin_above(own.bin + 1) : kBins;
  return bin == kBins ? nullptr : heads_[bin];
}

std::size_t FreeIndex::largest_key() const noexcept {
  std::size_t largest = 0;
  for (const Span* span = first_of_highest(); span != nullptr; span = span->links[links_].next) {
    largest = std::max(largest, key(*span));
  }
  return largest;
}

}  // namespace mempool
