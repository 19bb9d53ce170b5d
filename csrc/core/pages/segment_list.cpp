#include "core/pages/segment_list.h"

#include <algorithm>
#include <new>

#include "common/align.h"
#include "common/expects.h"

namespace mempool {

// ---- segments ----------------------------------------------------------------------------------------------------

SegmentList::~SegmentList() {
  while (first_ != nullptr) delete std::exchange(first_, first_->next);
}

bool SegmentList::add(std::size_t bytes, Refusal& why) noexcept {
  const std::size_t least = align_up(bytes, memory_.granule_bytes());
  std::size_t size = std::max(segment_bytes_, least);
  auto* segment = new (std::nothrow) Segment;
  if (segment == nullptr) {
    why = Refusal::metadata;
    return false;
  }
  void* address = memory_.reserve_addresses(size);
  if (address == nullptr && size > least) {  // address space may be limited: take no more than is needed
    size = least;
    address = memory_.reserve_addresses(size);
  }
  if (address == nullptr) {
    delete segment;
    why = Refusal::backend;
    return false;
  }
  segment->start = reinterpret_cast<std::uintptr_t>(address);
  segment->bytes = size;
  segment->arena = arena_;
  segment->next = first_;
  if (first_ != nullptr) first_->previous = segment;
  first_ = segment;
  Span* const hole = records_.take();
  hole->start = segment->start;
  hole->bytes = size;
  hole->segment = segment;
  segment->first = hole;
  free_.insert(hole);
  return true;
}

void SegmentList::remove(Segment* segment) noexcept {
  MEMPOOL_EXPECTS(is_empty(*segment));
  free_.erase(segment->first);
  records_.give_back(segment->first);
  (segment->previous != nullptr ? segment->previous->next : first_) = segment->next;
  if (segment->next != nullptr) segment->next->previous = segment->previous;
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!segment->is_given_back) memory_.free_addresses(reinterpret_cast<void*>(segment->start), segment->bytes);
  delete segment;
}

void SegmentList::remove_empty() noexcept {
  for (Segment* segment = first_; segment != nullptr;) {
    Segment* const next = segment->next;
    if (is_empty(*segment)) remove(segment);
    segment = next;
  }
}

// ---- splitting and coalescing ------------------------------------------------------------------------------------

bool SegmentList::can_coalesce(const Span* a, const Span* b) noexcept {
  if (a == nullptr || b == nullptr || a->state != b->state) return false;
  if (a->state == Span::State::hole) return true;
  return a->state == Span::State::free && a->shared == b->shared;
}

// Joins a span that is in no index with its neighbours. The result is in none either.
Span* SegmentList::coalesce(Span* span) noexcept {
  if (Span* const previous = span->previous; can_coalesce(previous, span)) {
    free_.erase(previous);
    previous->bytes += span->bytes;
    previous->moment = std::max(previous->moment, span->moment);
    previous->next = span->next;
    if (span->next != nullptr) span->next->previous = previous;
    records_.give_back(span);
    span = previous;
  }
  if (Span* const next = span->next; can_coalesce(span, next)) {
    free_.erase(next);
    span->bytes += next->bytes;
    span->moment = std::max(span->moment, next->moment);
    span->next = next->next;
    if (next->next != nullptr) next->next->previous = span;
    records_.give_back(next);
  }
  return span;
}

// Shortens `span` to its first `bytes`; returns the rest as a new span of the same kind, in no index.
Span* SegmentList::split(Span* span, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(bytes > 0 && bytes < span->bytes);
  Span* const rest = records_.take();
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

Span* SegmentList::take(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(bytes > 0 && start >= span->start && bytes <= span->end() - start);
  free_.erase(span);
  if (start > span->start) {
    Span* const rest = split(span, start - span->start);
    free_.insert(span);
    span = rest;
  }
  if (bytes < span->bytes) free_.insert(split(span, bytes));
  return span;
}

Span* SegmentList::put(Span* span) noexcept {
  span = coalesce(span);
  free_.insert(span);
  return span;
}

// ---- backing -----------------------------------------------------------------------------------------------------

void SegmentList::fill(Span* hole, std::uintptr_t start, std::size_t bytes, std::uint64_t moment) noexcept {
  MEMPOOL_EXPECTS(hole->state == Span::State::hole);
  Span* const span = take(hole, start, bytes);
  range_changes_ += 1 - is_backed(span->previous) - is_backed(span->next);
  span->state = Span::State::free;
  span->moment = moment;
  span->segment->backed_bytes += bytes;
  backed_bytes_ += bytes;
  put(span);
}

Span* SegmentList::vacate(Span* span, std::uintptr_t start, std::size_t bytes, Span::State state) noexcept {
  MEMPOOL_EXPECTS(span->state == Span::State::free);
  span = take(span, start, bytes);
  range_changes_ += is_backed(span->previous) + is_backed(span->next) - 1;
  span->segment->backed_bytes -= bytes;
  backed_bytes_ -= bytes;
  span->state = state;
  return span;
}

Span* SegmentList::make_hole(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  const bool has_front = span->start < start;
  Span* const hole = vacate(span, start, bytes, Span::State::hole);
  Span* const before = has_front ? hole->previous : nullptr;
  put(hole);
  return before;
}

Span* SegmentList::make_stale(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  return vacate(span, start, bytes, Span::State::stale);
}

// ---- reading -----------------------------------------------------------------------------------------------------

Span* SegmentList::find(std::uintptr_t address, Span* near) const noexcept {
  const auto holds = [address](const Span* span) {
    return span->state == Span::State::free && span->start <= address && address < span->end();
  };
  if (near != nullptr && holds(near)) return near;
  for (const Segment* segment = first_; segment != nullptr; segment = segment->next) {
    if (address < segment->start || address >= segment->start + segment->bytes) continue;
    Span* span = segment->first;
    while (span->end() <= address) span = span->next;
    return span;
  }
  return nullptr;
}

int SegmentList::backed_ranges() const noexcept {
  int ranges = 0;
  for (const Segment* segment = first_; segment != nullptr; segment = segment->next) {
    bool open = false;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool backed = span->is_backed();
      ranges += backed && !open ? 1 : 0;
      open = backed;
    }
  }
  return ranges;
}

}  // namespace mempool
