// How a PageHeap takes memory from the backend and gives it back.
#include <algorithm>
#include <new>

#include "common/align.h"
#include "core/pages/page_heap.h"
#include "core/pages/page_map.h"

namespace mempool {
namespace {

// Handles that stay whole cost driver calls each, and what is free of one that is not entirely free cannot move. So
// they are as large as a block that asks for memory, within bounds: higher ones as more is held, lower ones as more is
// stranded in that way.
constexpr std::size_t kLargestHandle = std::size_t{128} << 20;
constexpr std::size_t kHandlesHeld = 256;
constexpr std::size_t kLeastHandle = std::size_t{16} << 20;
constexpr std::size_t kShareStranded = 125;  // what of all that is held may be, before handles become smaller
constexpr std::size_t kHandlesLeft = 64;     // that what is left of the device's memory would make

// Of byte counts whose product may be too large for an integer.
std::size_t scaled(std::size_t bytes, std::size_t part, std::size_t whole) {
  return static_cast<std::size_t>(static_cast<double>(bytes) * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

bool PageHeap::commit_rest(Filling& filling, std::size_t bytes, Refusal& why) noexcept {
  for (std::size_t piece = 0; bytes > 0; bytes -= piece) {
    piece = handle_bytes(bytes);
    if (!commit_piece(filling, piece, why)) return false;
  }
  return true;
}

// What the backend does not take back stays in the range.
void PageHeap::give_back_new(Filling& filling) noexcept {
  while (!filling.pieces.empty() && filling.pieces.back().source == nullptr) {
    const Filling::Piece& piece = filling.pieces.back();
    const auto record = handles_.find(piece.to);
    if (!memory_.decommit(record->second)) return;
    handles_.erase(record);
    ledger_.unhold(piece.bytes);
    filling.end = piece.to;
    filling.pieces.pop_back();
  }
}

// What can still be had, by the backend's word and the device's limit.
std::size_t PageHeap::available() const noexcept {
  const std::size_t held = ledger_.held();
  const std::size_t limit = ledger_.limit();
  return std::min(memory_.available_bytes(), limit > held ? limit - held : 0);
}

// How much of `wanted` one handle takes. The last of a device's memory comes in small ones, which fit wherever it may
// be needed.
std::size_t PageHeap::handle_bytes(std::size_t wanted) const noexcept {
  if (capabilities_.can_cut) return wanted;
  const std::size_t held = ledger_.held();
  std::size_t most = std::max(kLargestHandle, held / kHandlesHeld);
  if (const std::size_t bearable = held / kShareStranded; stranded_ > bearable) {
    most = std::max(kLeastHandle, scaled(most, bearable, stranded_));
  }
  return std::min(wanted, align_up(std::clamp(available() / kHandlesLeft, kLeastHandle, most), granule_));
}

// Maps new memory at the end of what is filled.
bool PageHeap::commit_piece(Filling& filling, std::size_t bytes, Refusal& why) noexcept {
  if (ledger_.try_hold(bytes)) return map_piece(filling, bytes, why);
  why = Refusal::limit;
  return false;
}

// The same for bytes that the ledger holds already. False: it does not any more, except for what the backend keeps.
bool PageHeap::map_piece(Filling& filling, std::size_t bytes, Refusal& why) noexcept {
  std::map<std::uintptr_t, Handle>::iterator record;
  if (!reserve_records(kRecordsForOperation)) {
    ledger_.unhold(bytes);
    why = Refusal::metadata;
    return false;
  }
  try {
    filling.pieces.reserve(filling.pieces.size() + 1);
    record = handles_.try_emplace(filling.end).first;
  } catch (const std::bad_alloc&) {
    ledger_.unhold(bytes);
    why = Refusal::metadata;
    return false;
  }
  const auto refuse = [&](Refusal reason) {
    handles_.erase(record);
    ledger_.unhold(bytes);
    why = reason;
    return false;
  };
  // The records first, so that nothing has to be undone; but those of a range so long that the backend will refuse it
  // would be a large part of a machine's address space.
  constexpr std::size_t kSurelyModest = std::size_t{64} << 30;
  if (bytes <= kSurelyModest && !PageMap::instance().prepare(filling.end, bytes)) return refuse(Refusal::metadata);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.commit(reinterpret_cast<void*>(filling.end), bytes, record->second)) return refuse(Refusal::backend);
  if (!PageMap::instance().prepare(filling.end, bytes)) {
    why = Refusal::metadata;
    return memory_.decommit(record->second) && refuse(Refusal::metadata);
  }
  filling.pieces.push_back({nullptr, 0, filling.end, bytes, nullptr, StreamClock::kAlways});
  filling.end += bytes;
  return true;
}

// Makes a part of a hole a free range. Returns what is left of the hole behind it, or nullptr.
Span* PageHeap::fill_hole(Span* hole, std::uintptr_t start, std::size_t bytes, StreamClock::Moment moment) noexcept {
  unindex(hole);
  Span* const span = isolate(hole, start, bytes);
  Span* const behind = span->next != nullptr && span->next->state == Span::State::hole ? span->next : nullptr;
  count_ranges(1 - is_backed(span->previous) - is_backed(span->next));
  span->state = Span::State::free;
  span->moment = moment;
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
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!segment->is_given_back) memory_.unreserve(reinterpret_cast<void*>(segment->start), segment->bytes);
  delete segment;
}

bool PageHeap::open_again() noexcept {
  bool all = true;
  for (const auto& [start, handle] : handles_) all &= memory_.open(handle.address, handle.bytes);
  return all;
}

std::vector<Handle> PageHeap::handles_of(const Span& span) const {
  std::vector<Handle> out;
  auto it = handles_.upper_bound(span.start);
  if (it != handles_.begin()) --it;
  for (; it != handles_.end() && it->first < span.end(); ++it) out.push_back(it->second);
  return out;
}

// ---- giving back -------------------------------------------------------------------------------------------------

void PageHeap::count_commit(std::size_t bytes) noexcept {
  const std::size_t shared = std::min(bytes, still_to_share_);
  still_to_share_ -= shared;
  ledger_.count_commit(bytes, shared);
}

std::size_t PageHeap::release(std::size_t bytes, bool may_wait) noexcept {
  if (asleep()) return 0;
  // Where memory comes with its address, giving it back waits for all work of the device.
  if (capabilities_.reserves_memory && !may_wait) return 0;
  // Memory that is still mapped where it was before is not the system's again when its handle is given up.
  sweep(may_wait);
  clock_.poll();
  std::size_t given = 0;
  bool may_give = (movable_ || is_let_go_) && stale_.empty() && bytes > 0 && whole_.count() > 0;
  int ranges = 0;
  counting_ranges_ = &ranges;
  // A captured graph that used the memory may have run on any stream.
  if (may_give && !movable_) may_give = may_wait && clock_.wait_for_device();
  for (Span* span = may_give ? whole_.first_of_highest() : nullptr; span != nullptr && given < bytes;) {
    Span* const next = whole_.next_down(span);
    if (clock_.has_passed(span->moment) || (may_wait && clock_.wait(span->moment))) {
      given += release_from(span, bytes - given);
    }
    span = next;
  }
  for (Segment* segment = segments_; segment != nullptr;) {
    Segment* const next = segment->next;
    if (is_empty(*segment)) remove_segment(segment);
    segment = next;
  }
  counting_ranges_ = nullptr;
  if (ranges != 0) ledger_.count_ranges(ranges);
  settle_ranges();
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
    rest->segment->is_given_back = capabilities_.reserves_memory;
    it = handles_.erase(it);
    given += handle_bytes;
    ledger_.count_decommit(handle_bytes);
    rest = make_hole(rest, start, handle_bytes);
    if (rest == nullptr) break;
  }
  return given;
}

// Takes a part out of an indexed free span that has lost its memory. It is in no index and not merged.
Span* PageHeap::cut_hole(Span* span, std::uintptr_t start, std::size_t bytes, Span::State state) noexcept {
  unindex(span);
  Span* const hole = isolate(span, start, bytes);
  count_ranges(is_backed(hole->previous) + is_backed(hole->next) - 1);
  hole->segment->backed_bytes -= bytes;
  backed_bytes_ -= bytes;
  hole->state = state;
  return hole;
}

// Makes a part of an indexed free span a hole. Returns what is left of the span before it, or nullptr.
Span* PageHeap::make_hole(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  const bool has_front = span->start < start;
  Span* const hole = cut_hole(span, start, bytes, Span::State::hole);
  Span* const before = has_front ? hole->previous : nullptr;
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
