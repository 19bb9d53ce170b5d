#include "core/pages/page_heap.h"

#include <algorithm>
#include <new>
#include <string>

#include "common/align.h"
#include "core/pages/page_map.h"

namespace mempool {
namespace {

constexpr std::size_t kRecordsAtOnce = 256;
constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

std::int64_t as_signed(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }

}  // namespace

PageHeap::PageHeap(PhysicalMemory& memory, Ledger& ledger, const Options& options, Arena* arena, StreamClock& clock,
                   bool movable)
    : memory_(memory),
      ledger_(ledger),
      capabilities_(memory.capabilities()),
      granule_(memory.granule_bytes()),
      chunk_(align_up(kChunkBytes, granule_)),
      segment_bytes_(capabilities_.reserves_memory ? granule_
                                                   : align_up(std::max(options.segment_bytes, granule_), granule_)),
      arena_(arena),
      clock_(clock),
      movable_(movable),
      stitching_(options.stitch),
      whole_(1, granule_) {}

PageHeap::~PageHeap() {
  forget_sleep();
  let_go();
  release(SIZE_MAX, true);
}

// ---- records -----------------------------------------------------------------------------------------------------

bool PageHeap::reserve_records(std::size_t spans) noexcept {
  while (free_record_count_ < spans) {
    try {
      record_chunks_.reserve(record_chunks_.size() + 1);
      record_chunks_.push_back(std::make_unique<Span[]>(kRecordsAtOnce));
    } catch (const std::bad_alloc&) {
      return false;
    }
    for (std::size_t i = 0; i < kRecordsAtOnce; ++i) return_record(&record_chunks_.back()[i]);
  }
  return true;
}

Span* PageHeap::take_record() noexcept {
  Span* const span = free_records_;
  free_records_ = span->next;
  --free_record_count_;
  *span = Span{};
  return span;
}

void PageHeap::return_record(Span* span) noexcept {
  span->bytes = 0;  // whoever still points here finds no range
  span->next = free_records_;
  free_records_ = span;
  ++free_record_count_;
}

// ---- spans -------------------------------------------------------------------------------------------------------

void PageHeap::index(Span* span) noexcept {
  if (span->state == Span::State::hole) {
    holes_.insert(span);
    return;
  }
  index_of(*span).insert(span);
  if (!span->shared) whole_.insert(span);
  range_changes_.add(span->shared, 1, as_signed(span->bytes));
}

void PageHeap::unindex(Span* span) noexcept {
  if (span->state == Span::State::hole) {
    holes_.erase(span);
    return;
  }
  index_of(*span).erase(span);
  if (whole_.holds(*span)) whole_.erase(span);
  range_changes_.add(span->shared, -1, -as_signed(span->bytes));
}

bool PageHeap::mergeable(const Span* a, const Span* b) noexcept {
  if (a == nullptr || b == nullptr || a->state != b->state) return false;
  if (a->state == Span::State::hole) return true;
  return a->state == Span::State::free && a->shared == b->shared;
}

// Joins an unindexed span with its neighbours. The result is unindexed too.
Span* PageHeap::merge(Span* span) noexcept {
  if (Span* const previous = span->previous; mergeable(previous, span)) {
    unindex(previous);
    previous->bytes += span->bytes;
    previous->moment = std::max(previous->moment, span->moment);
    previous->next = span->next;
    if (span->next != nullptr) span->next->previous = previous;
    return_record(span);
    span = previous;
  }
  if (Span* const next = span->next; mergeable(span, next)) {
    unindex(next);
    span->bytes += next->bytes;
    span->moment = std::max(span->moment, next->moment);
    span->next = next->next;
    if (next->next != nullptr) next->next->previous = span;
    return_record(next);
  }
  return span;
}

// Shortens `span` to its first `bytes`; returns the rest as a new, unindexed span of the same kind.
Span* PageHeap::cut_front(Span* span, std::size_t bytes) noexcept {
  Span* const rest = take_record();
  rest->start = span->start + bytes;
  rest->bytes = span->bytes - bytes;
  rest->segment = span->segment;
  rest->state = span->state;
  rest->shared = span->shared;
  rest->moment = span->moment;
  rest->previous = span;
  rest->next = span->next;
  if (span->next != nullptr) span->next->previous = rest;
  span->next = rest;
  span->bytes = bytes;
  return rest;
}

Span* PageHeap::isolate(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  if (start > span->start) {
    Span* const rest = cut_front(span, start - span->start);
    index(span);
    span = rest;
  }
  if (bytes < span->bytes) index(cut_front(span, bytes));
  return span;
}

// ---- blocks ------------------------------------------------------------------------------------------------------

Span* PageHeap::allocate(std::size_t bytes, const Supply& supply, Refusal& why) noexcept {
  if (!reserve_records(kRecordsForOperation)) {
    why = Refusal::metadata;
    return nullptr;
  }
  Span* const span =
      bytes <= kMediumMax ? allocate_medium(bytes, supply, why) : allocate_large(bytes, false, supply, why);
  settle_ranges();
  if (span == nullptr) return nullptr;
  need_ = std::max(need_, need());
  span->state = Span::State::block;
  PageMap::instance().set_block(*span, span);
  return span;
}

Span* PageHeap::allocate_at(std::uintptr_t start, std::size_t bytes) noexcept {
  Span* span = free_span_at(start, nullptr);
  if (span == nullptr || span->state != Span::State::free || start < span->start || start + bytes > span->end() ||
      !reserve_records(kRecordsForOperation)) {
    return nullptr;
  }
  unindex(span);
  span = isolate(span, start, bytes);
  settle_ranges();
  span->state = Span::State::block;
  PageMap::instance().set_block(*span, span);
  return span;
}

void PageHeap::make_slab(Span* span, Slab* slab) noexcept {
  span->state = Span::State::slab;
  span->slab = slab;
  span->home = arena_;
  PageMap::instance().set_slab(*span, span);
}

void PageHeap::free(Span* span) noexcept {
  if (span->state == Span::State::slab) {
    PageMap::instance().set_slab(*span, nullptr);
  } else {
    PageMap::instance().set_block(*span, nullptr);
  }
  span->state = Span::State::free;
  span->slab = nullptr;
  span->moment = latest_free_ = clock_.now();
  span = merge(span);
  if (span->shared) {
    return_granules(span);
  } else {
    index(span);
  }
  settle_ranges();
}

// From the shared granules; then from what is left over between large blocks and holds no whole granule: nobody else
// can use that; then from a new shared granule. When none is to be had the ends of large ranges must do, before
// anything is refused.
Span* PageHeap::allocate_medium(std::size_t bytes, const Supply& supply, Refusal& why) noexcept {
  Span* span = shared_.best_fit(bytes);
  if (span == nullptr) {
    span = large_.best_fit(bytes);
    if (span != nullptr && whole_.holds(*span)) span = nullptr;
  }
  if (span == nullptr && take_chunk(supply, why)) span = shared_.best_fit(bytes);
  if (span == nullptr) span = large_.best_fit(bytes);
  if (span == nullptr) return nullptr;
  unindex(span);
  return isolate(span, span->start, bytes);
}

// `aligned`: on a granule.
Span* PageHeap::find_free(std::size_t bytes, bool aligned) const noexcept {
  return aligned ? whole_.best_fit(bytes) : large_.best_fit(bytes);
}

Span* PageHeap::allocate_large(std::size_t bytes, bool aligned, const Supply& supply, Refusal& why) noexcept {
  Span* span = find_free(bytes, aligned);
  if (span == nullptr) {
    if (!supply.may_grow || !grow(bytes, aligned, supply, why)) return nullptr;
    span = find_free(bytes, aligned);
    if (span == nullptr) {  // cannot be: growth made a range that fits
      why = Refusal::backend;
      return nullptr;
    }
  }
  unindex(span);
  return isolate(span, aligned ? align_up(span->start, granule_) : span->start, bytes);
}

// Moves one chunk of whole granules from the large ranges to the shared ones.
bool PageHeap::take_chunk(const Supply& supply, Refusal& why) noexcept {
  still_to_share_ = chunk_;  // what is new of it is counted there from the first
  Span* span = allocate_large(chunk_, true, supply, why);
  const std::size_t left = std::exchange(still_to_share_, 0);
  if (span == nullptr) return false;
  span->shared = true;
  if (left > 0) ledger_.share(as_signed(left));
  shared_bytes_ += chunk_;
  index(merge(span));
  return true;
}

// Indexes a shared free span, except for the whole granules in it, which return to the large ranges.
void PageHeap::return_granules(Span* span) noexcept {
  const std::uintptr_t first = align_up(span->start, granule_);
  const std::uintptr_t last = align_down(span->end(), granule_);
  // Without records for the cut the granules stay shared: they are found again at the next free beside them.
  if (first >= last || !reserve_records(2)) {
    index(span);
    return;
  }
  span = isolate(span, first, last - first);
  span->shared = false;
  if (is_counted()) ledger_.share(-as_signed(span->bytes));
  shared_bytes_ -= span->bytes;
  index(merge(span));
}

// ---- reading -----------------------------------------------------------------------------------------------------

std::size_t PageHeap::largest_free() const noexcept { return std::max(large_.largest_key(), shared_.largest_key()); }

}  // namespace mempool
