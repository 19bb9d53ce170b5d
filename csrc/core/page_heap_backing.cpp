// How a PageHeap takes memory from the backend and gives it back.
#include <algorithm>
#include <new>

#include "common/align.h"
#include "core/page_heap.h"
#include "core/page_map.h"

namespace mempool {
namespace {

bool is_backed(const Span* span) { return span != nullptr && span->state != Span::State::hole; }

}  // namespace

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
  // The records first, so that nothing has to be undone; but those of a range so long that the backend will refuse it
  // would be a large part of a machine's address space.
  constexpr std::size_t kSurelyModest = std::size_t{64} << 30;
  if (growth.bytes <= kSurelyModest && !PageMap::instance().prepare(growth.start, growth.bytes)) {
    handles_.erase(record);
    ledger_.unhold(growth.bytes);
    why = Refusal::metadata;
    return false;
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.commit(reinterpret_cast<void*>(growth.start), growth.bytes, record->second)) {
    handles_.erase(record);
    ledger_.unhold(growth.bytes);
    why = Refusal::backend;
    return false;
  }
  if (!PageMap::instance().prepare(growth.start, growth.bytes)) {
    if (memory_.decommit(record->second)) {
      handles_.erase(record);
      ledger_.unhold(growth.bytes);
    }
    why = Refusal::metadata;
    return false;
  }
  join_with_previous(record, *growth.hole->segment);
  fill_hole(growth.hole, growth.start, growth.bytes);
  ledger_.count_commit(growth.bytes);
  return true;
}

// Makes a part of a hole a free range. Returns what is left of the hole behind it, or nullptr.
Span* PageHeap::fill_hole(Span* hole, std::uintptr_t start, std::size_t bytes) noexcept {
  unindex(hole);
  Span* const span = isolate(hole, start, bytes);
  Span* const behind = span->next != nullptr && span->next->state == Span::State::hole ? span->next : nullptr;
  ledger_.count_ranges(1 - is_backed(span->previous) - is_backed(span->next));
  span->state = Span::State::free;
  span->segment->backed_bytes += bytes;
  backed_bytes_ += bytes;
  index(merge(span));
  return behind;
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
  if (asleep()) return 0;
  std::size_t given = 0;
  for (Span* span = whole_.first_of_highest(); span != nullptr && given < bytes;) {
    Span* const next = whole_.next_down(span);
    given += release_from(span, bytes - given);
    span = next;
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
    if (!reserve_records(kRecordsForCut) || !memory_.decommit(it->second)) break;
    const std::uintptr_t start = it->first;
    const std::size_t handle_bytes = it->second.bytes;
    it = handles_.erase(it);
    given += handle_bytes;
    ledger_.count_decommit(handle_bytes);
    rest = make_hole(rest, start, handle_bytes);
    if (rest == nullptr) break;
  }
  return given;
}

// Makes a part of an indexed free span a hole. Returns what is left of the span before it, or nullptr. `made`: the
// hole, together with its neighbours.
Span* PageHeap::make_hole(Span* span, std::uintptr_t start, std::size_t bytes, Span** made) noexcept {
  unindex(span);
  Span* hole = isolate(span, start, bytes);
  Span* const before = hole == span ? nullptr : hole->previous;
  ledger_.count_ranges(is_backed(hole->previous) + is_backed(hole->next) - 1);
  hole->segment->backed_bytes -= bytes;
  backed_bytes_ -= bytes;
  hole->state = Span::State::hole;
  hole = merge(hole);
  index(hole);
  if (made != nullptr) *made = hole;
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

// Makes the handle one with that before it, where handles can be cut: there a handle is no more than a range.
bool PageHeap::join_with_previous(std::map<std::uintptr_t, Handle>::iterator record, const Segment& segment) noexcept {
  if (!capabilities_.can_cut || record == handles_.begin() || record->first == segment.start) return false;
  const auto previous = std::prev(record);
  if (previous->first + previous->second.bytes != record->first) return false;
  if (!memory_.join(previous->second, record->second)) return false;
  handles_.erase(record);
  return true;
}

}  // namespace mempool
