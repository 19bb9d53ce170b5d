// Stitching: a range that is too short is made longer with free memory from elsewhere, moved under its addresses. Live
// blocks stay where they are, nothing is copied, and what the device holds does not grow.
#include <new>
#include <vector>

#include "common/align.h"
#include "core/page_heap.h"
#include "core/page_map.h"
#include "core/stitch_plan.h"

namespace mempool {

// Every piece that may move, but for the ends of the range that is being made: they are in their place already.
std::vector<FreePiece> PageHeap::movable_pieces(const Span* not_this, const Span* nor_this) const {
  std::vector<FreePiece> pieces;
  for (Span* span = large_.largest(); span != nullptr && span->bytes >= granule_; span = large_.before(*span)) {
    if (span == not_this || span == nor_this) continue;
    const std::uintptr_t low = align_up(span->start, granule_);
    const std::uintptr_t high = align_down(span->end(), granule_);
    if (low >= high) continue;
    if (capabilities_.can_cut) {
      pieces.push_back({low, high - low, span});
      continue;
    }
    for (auto it = handles_.lower_bound(low); it != handles_.end() && it->first + it->second.bytes <= high; ++it) {
      pieces.push_back({it->first, it->second.bytes, span});
    }
  }
  return pieces;
}

// Fills `growth` from its start with moved memory. Returns what is left of it to be committed.
PageHeap::Growth PageHeap::stitch(Growth growth) noexcept {
  if (!capabilities_.can_move || !stitching_) return growth;
  std::vector<FreePiece> plan;
  try {
    std::vector<FreePiece> pieces = movable_pieces(growth.hole->previous, growth.hole->next);
    plan = plan_stitch(pieces, growth.bytes, capabilities_.can_cut);
  } catch (const std::bad_alloc&) {
    return growth;  // without memory for a plan the backend is asked instead
  }
  for (const FreePiece& piece : plan) {
    if (!cut_handle_at(piece.start) || !cut_handle_at(piece.start + piece.bytes)) break;
    for (std::uintptr_t at = piece.start; at < piece.start + piece.bytes;) {
      const std::size_t bytes = handles_.find(at)->second.bytes;
      if (!move_handle(at, piece.span, growth)) return growth;
      at += bytes;
    }
  }
  return growth;
}

// Moves one entirely free handle to the start of `growth`, which begins behind it afterwards. False: nothing changed.
bool PageHeap::move_handle(std::uintptr_t from, Span* near, Growth& growth) noexcept {
  if (!reserve_records(2 * kRecordsForCut)) return false;
  const auto found = handles_.find(from);
  const std::size_t bytes = found->second.bytes;
  if (!PageMap::instance().prepare(growth.start, bytes)) return false;
  Span* const source = free_span_at(from, near);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (!memory_.move(found->second, reinterpret_cast<void*>(growth.start))) return false;
  auto record = handles_.extract(found);
  record.key() = growth.start;
  handles_.insert(std::move(record));
  make_hole(source, from, bytes);
  growth.hole = fill_hole(growth.hole, growth.start, bytes);
  growth.start += bytes;
  growth.bytes -= bytes;
  ledger_.count_move(bytes);
  return true;
}

// The free span that holds `address`. Precondition: there is one. Mostly it is `near`, or the part behind a cut of it:
// a record may have changed hands since, but if it describes a free span around the address, that is the one.
Span* PageHeap::free_span_at(std::uintptr_t address, Span* near) const noexcept {
  const auto holds = [address](const Span* span) {
    return span->state == Span::State::free && span->start <= address && address < span->end();
  };
  if (holds(near)) return near;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    if (address < segment->start || address >= segment->start + segment->bytes) continue;
    Span* span = segment->first;
    while (span->end() <= address) span = span->next;
    return span;
  }
  return nullptr;
}

}  // namespace mempool
