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

bool is_backed(const Span* span) { return span != nullptr && span->state != Span::State::hole; }

}  // namespace

PageHeap::PageHeap(PhysicalMemory& memory, Ledger& ledger, std::size_t segment_bytes, Arena* arena)
    : memory_(memory),
      ledger_(ledger),
      capabilities_(memory.capabilities()),
      granule_(memory.granule_bytes()),
      chunk_(align_up(kChunkBytes, granule_)),
      segment_bytes_(align_up(std::max(segment_bytes, granule_), granule_)),
      arena_(arena) {}

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

// ---- growth ------------------------------------------------------------------------------------------------------

bool PageHeap::grow(std::size_t bytes, bool aligned, Refusal& why) noexcept {
  Growth growth = plan_growth(bytes, aligned);
  if (growth.hole == nullptr) {
    if (!add_segment(bytes, why)) return false;
    growth = plan_growth(bytes, aligned);
  }
  return commit(growth, why);
}

// Where the least new backing makes a free range of `bytes`: a hole, together with the free ranges at its ends. An
// aligned range (a chunk, whole granules) is taken from a hole alone.
PageHeap::Growth PageHeap::plan_growth(std::size_t bytes, bool aligned) const noexcept {
  Growth best;
  const auto offer = [&best](Span* hole, std::uintptr_t start, std::size_t backing) {
    if (best.hole == nullptr || backing < best.bytes || (backing == best.bytes && start < best.start)) {
      best = {hole, start, backing};
    }
  };
  const auto free_bytes = [](const Span* span) {
    return span != nullptr && span->state == Span::State::free && !span->shared ? span->bytes : 0;
  };
  const Span origin;
  for (Span* hole = holes_.after(origin); hole != nullptr; hole = holes_.after(*hole)) {
    if (aligned) {
      if (hole->bytes >= bytes) {
        // From the far end, so that chunks do not stand in the way of large ranges that grow from the near one.
        offer(hole, hole->end() - bytes, bytes);
        break;  // all further holes are larger and need the same backing
      }
      continue;
    }
    const std::size_t before = free_bytes(hole->previous);
    const std::size_t behind = free_bytes(hole->next);
    if (before + hole->bytes + behind < bytes) continue;
    const std::size_t at_front = std::min(hole->bytes, align_up(bytes - before, granule_));
    const std::size_t at_back = std::min(hole->bytes, align_up(bytes - behind, granule_));
    if (at_front <= at_back) {
      offer(hole, hole->start, at_front);
    } else {
      offer(hole, hole->end() - at_back, at_back);
    }
  }
  return best;
}

bool PageHeap::commit(const Growth& growth, Refusal& why) noexcept {
  std::map<std::uintptr_t, Handle>::iterator record;
  try {
    record = handles_.try_emplace(growth.start).first;
  } catch (const std::bad_alloc&) {
    why = Refusal::metadata;
    return false;
  }
  if (!ledger_.try_hold(growth.bytes)) {
    handles_.erase(record);
    why = Refusal::limit;
    return false;
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.commit(reinterpret_cast<void*>(growth.start), growth.bytes, record->second)) {
    handles_.erase(record);
    ledger_.unhold(growth.bytes);
    why = Refusal::backend;
    return false;
  }
  if (capabilities_.can_cut && record != handles_.begin()) {
    const auto previous = std::prev(record);
    const bool adjacent =
        previous->first + previous->second.bytes == growth.start && growth.start != growth.hole->segment->start;
    if (adjacent && memory_.join(previous->second, record->second)) handles_.erase(record);
  }
  unindex(growth.hole);
  Span* span = isolate(growth.hole, growth.start, growth.bytes);
  ledger_.count_commit(growth.bytes, 1 - is_backed(span->previous) - is_backed(span->next));
  span->state = Span::State::free;
  span->segment->backed_bytes += growth.bytes;
  index(merge(span));
  return true;
}

bool PageHeap::add_segment(std::size_t bytes, Refusal& why) noexcept {
  const std::size_t least = align_up(bytes, granule_);
  std::size_t size = std::max(segment_bytes_, least);
  auto* segment = new (std::nothrow) Segment;
  if (segment == nullptr) {
    why = Refusal::metadata;
    return false;
  }
  void* address = memory_.reserve(size);
  if (address == nullptr && size > least) {  // address space may be limited: take no more than is needed
    size = least;
    address = memory_.reserve(size);
  }
  if (address == nullptr) {
    delete segment;
    why = Refusal::backend;
    return false;
  }
  segment->start = reinterpret_cast<std::uintptr_t>(address);
  segment->bytes = size;
  segment->arena = arena_;
  if (!PageMap::instance().prepare(segment->start, size)) {
    memory_.unreserve(address, size);
    delete segment;
    why = Refusal::metadata;
    return false;
  }
  segment->next = segments_;
  if (segments_ != nullptr) segments_->previous = segment;
  segments_ = segment;
  Span* const hole = take_record();
  hole->start = segment->start;
  hole->bytes = size;
  hole->segment = segment;
  segment->first = hole;
  index(hole);
  return true;
}

void PageHeap::remove_segment(Segment* segment) noexcept {
  unindex(segment->first);
  return_record(segment->first);
  (segment->previous != nullptr ? segment->previous->next : segments_) = segment->next;
  if (segment->next != nullptr) segment->next->previous = segment->previous;
  memory_.unreserve(reinterpret_cast<void*>(segment->start), segment->bytes);  // NOLINT(performance-no-int-to-ptr)
  delete segment;
}

// ---- giving back -------------------------------------------------------------------------------------------------

std::size_t PageHeap::release(std::size_t bytes) noexcept {
  std::size_t given = 0;
  Span* span = large_.largest();
  while (span != nullptr && given < bytes && span->bytes >= granule_) {
    // A span that gives nothing keeps its place in the order: go on with the next smaller one.
    const Span place = *span;
    given += release_from(span, bytes - given);
    span = large_.before(place);
  }
  for (Segment* segment = segments_; segment != nullptr;) {
    Segment* const next = segment->next;
    if (segment->backed_bytes == 0) remove_segment(segment);
    segment = next;
  }
  return given;
}

// Gives back whole handles inside a free span, from its high end down, until `bytes` are reached.
std::size_t PageHeap::release_from(Span* span, std::size_t bytes) noexcept {
  std::uintptr_t low = align_up(span->start, granule_);
  const std::uintptr_t high = align_down(span->end(), granule_);
  if (low >= high) return 0;
  if (capabilities_.can_cut) {
    if (bytes < high - low) low = align_down(high - bytes, granule_);
    if (!cut_handle_at(low) || !cut_handle_at(high)) return 0;
  }
  std::size_t given = 0;
  Span* rest = span;  // what is left of the span below the handles given back
  for (auto it = handles_.lower_bound(high); it != handles_.begin() && given < bytes;) {
    --it;
    if (it->first < low) break;
    if (it->first + it->second.bytes > high) continue;  // reaches out of the span
    if (!reserve_records(kRecordsForOperation) || !memory_.decommit(it->second)) break;
    const std::uintptr_t start = it->first;
    const std::size_t handle_bytes = it->second.bytes;
    it = handles_.erase(it);
    given += handle_bytes;
    rest = make_hole(rest, start, handle_bytes);
    if (rest == nullptr) break;
  }
  return given;
}

// Makes a part of an indexed free span a hole. Returns what is left of the span before it, or nullptr.
Span* PageHeap::make_hole(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  unindex(span);
  Span* hole = isolate(span, start, bytes);
  Span* const before = hole == span ? nullptr : hole->previous;
  ledger_.count_decommit(bytes, is_backed(hole->previous) + is_backed(hole->next) - 1);
  hole->segment->backed_bytes -= bytes;
  hole->state = Span::State::hole;
  index(merge(hole));
  return before;
}

// Makes `address` a boundary between handles. True also when it is one already or lies behind the last handle.
bool PageHeap::cut_handle_at(std::uintptr_t address) noexcept {
  auto it = handles_.upper_bound(address);
  if (it == handles_.begin()) return true;
  --it;
  Handle& handle = it->second;
  if (it->first == address || it->first + handle.bytes <= address) return true;
  try {
    const auto record = handles_.try_emplace(address).first;
    if (memory_.cut(handle, address - it->first, record->second)) return true;
    handles_.erase(record);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return false;
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
