#include "core/page_heap.h"

#include <algorithm>
#include <new>
#include <string>

#include "common/align.h"
#include "core/page_map.h"

namespace mempool {
namespace {

constexpr std::size_t kRecordsAtOnce = 256;
// Records that one operation may need at most: the ends of two cuts, and a new segment's hole.
constexpr std::size_t kRecordsForOperation = 8;
constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

std::int64_t as_signed(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }

}  // namespace

PageHeap::PageHeap(PhysicalMemory& memory, Ledger& ledger, const Options& options, Arena* arena)
    : memory_(memory),
      ledger_(ledger),
      capabilities_(memory.capabilities()),
      granule_(memory.granule_bytes()),
      chunk_(align_up(kChunkBytes, granule_)),
      segment_bytes_(align_up(std::max(options.segment_bytes, granule_), granule_)),
      arena_(arena),
      stitching_(options.stitch) {}

PageHeap::~PageHeap() { release(SIZE_MAX); }

// ---- records -----------------------------------------------------------------------------------------------------

bool PageHeap::reserve_records(std::size_t spans) noexcept {
  if (free_record_count_ >= spans) return true;
  try {
    record_chunks_.reserve(record_chunks_.size() + 1);
    record_chunks_.push_back(std::make_unique<Span[]>(kRecordsAtOnce));
  } catch (const std::bad_alloc&) {
    return false;
  }
  for (std::size_t i = 0; i < kRecordsAtOnce; ++i) return_record(&record_chunks_.back()[i]);
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
  free_ranges_.change(span->shared, 1, as_signed(span->bytes));
}

void PageHeap::unindex(Span* span) noexcept {
  if (span->state == Span::State::hole) {
    holes_.erase(span);
    return;
  }
  index_of(*span).erase(span);
  free_ranges_.change(span->shared, -1, -as_signed(span->bytes));
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
    previous->next = span->next;
    if (span->next != nullptr) span->next->previous = previous;
    return_record(span);
    span = previous;
  }
  if (Span* const next = span->next; mergeable(span, next)) {
    unindex(next);
    span->bytes += next->bytes;
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

Span* PageHeap::allocate(std::size_t bytes, Refusal& why) noexcept {
  if (!reserve_records(kRecordsForOperation)) {
    why = Refusal::metadata;
    return nullptr;
  }
  Span* span = nullptr;
  if (bytes <= kMediumMax) {
    span = shared_.best_fit(bytes);
    if (span == nullptr && take_chunk(why)) span = shared_.best_fit(bytes);
    // No whole granule is to be had: the ends of large ranges must do, before anything is refused.
    if (span == nullptr) span = large_.best_fit(bytes);
    if (span == nullptr) return nullptr;
    unindex(span);
    span = isolate(span, span->start, bytes);
  } else {
    span = allocate_large(bytes, kPageBytes, why);
    if (span == nullptr) return nullptr;
  }
  span->state = Span::State::block;
  PageMap::instance().set(span->start, kPageBytes, span);
  return span;
}

void PageHeap::make_slab(Span* span, Slab* slab) noexcept {
  span->state = Span::State::slab;
  span->slab = slab;
  PageMap::instance().set(span->start, span->bytes, span);
}

void PageHeap::free(Span* span) noexcept {
  PageMap::instance().set(span->start, span->state == Span::State::slab ? span->bytes : kPageBytes, nullptr);
  span->state = Span::State::free;
  span->slab = nullptr;
  span = merge(span);
  if (span->shared) {
    return_granules(span);
  } else {
    index(span);
  }
}

// The best fit in which `bytes` can be aligned. Only the nearest few are tried before one that fits for certain.
Span* PageHeap::find_free(std::size_t bytes, std::size_t alignment) const noexcept {
  constexpr int kTries = 8;
  Span* span = large_.best_fit(bytes);
  for (int i = 0; i < kTries && span != nullptr; ++i, span = large_.after(*span)) {
    if (align_up(span->start, alignment) + bytes <= span->end()) return span;
  }
  return span == nullptr ? nullptr : large_.best_fit(bytes + alignment);
}

Span* PageHeap::allocate_large(std::size_t bytes, std::size_t alignment, Refusal& why) noexcept {
  Span* span = find_free(bytes, alignment);
  if (span == nullptr) {
    if (!grow(bytes, alignment > kPageBytes, why)) return nullptr;
    span = find_free(bytes, alignment);
    if (span == nullptr) {  // cannot be: growth made a range that fits
      why = Refusal::backend;
      return nullptr;
    }
  }
  unindex(span);
  return isolate(span, align_up(span->start, alignment), bytes);
}

// Moves one chunk of whole granules from the large ranges to the shared ones.
bool PageHeap::take_chunk(Refusal& why) noexcept {
  Span* span = allocate_large(chunk_, granule_, why);
  if (span == nullptr) return false;
  span->shared = true;
  ledger_.share(as_signed(chunk_));
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
  ledger_.share(-as_signed(span->bytes));
  index(merge(span));
}

// ---- reading -----------------------------------------------------------------------------------------------------

std::size_t PageHeap::largest_free() const noexcept {
  const Span* const large = large_.largest();
  const Span* const shared = shared_.largest();
  return std::max(large != nullptr ? large->bytes : 0, shared != nullptr ? shared->bytes : 0);
}

std::size_t PageHeap::backed_bytes() const noexcept {
  std::size_t sum = 0;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) sum += segment->backed_bytes;
  return sum;
}

}  // namespace mempool
