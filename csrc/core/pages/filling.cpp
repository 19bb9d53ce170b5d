#include "core/pages/filling.h"

#include <algorithm>
#include <new>

#include "common/expects.h"
#include "core/pages/page_map.h"

namespace mempool {

// ---- new memory --------------------------------------------------------------------------------------------------

bool Filling::commit(std::size_t bytes, Refusal& why) noexcept {
  const Refusal refusal = refusal_of(ledger_.try_hold(bytes));
  if (refusal == Refusal::none) return commit_held(bytes, why);
  why = refusal;
  return false;
}

bool Filling::commit_held(std::size_t bytes, Refusal& why) noexcept {
  const auto refuse = [&](Refusal reason) {
    ledger_.unhold(bytes);
    why = reason;
    return false;
  };
  if (!target_.segments.reserve_records(SegmentList::kRecordsForOperation)) return refuse(Refusal::metadata);
  try {
    pieces_.reserve(pieces_.size() + 1);
  } catch (const std::bad_alloc&) {
    return refuse(Refusal::metadata);
  }
  if (!target_.handles.commit(end_, bytes, why)) return target_.handles.contains(end_) ? false : refuse(why);
  pieces_.push_back({nullptr, 0, end_, bytes, nullptr, StreamClock::kAlways});
  end_ += bytes;
  return true;
}

void Filling::give_back_new() noexcept {
  while (!pieces_.empty() && pieces_.back().source == nullptr) {
    const Piece& piece = pieces_.back();
    if (!target_.handles.decommit(piece.to)) return;
    ledger_.unhold(piece.bytes);
    end_ = piece.to;
    pieces_.pop_back();
  }
}

// ---- memory that moves -------------------------------------------------------------------------------------------

bool Filling::move(const FreePiece& piece) noexcept {
  PageSpace& source = *piece.source;
  const std::uintptr_t end = piece.start + piece.bytes;
  if (!source.handles.isolate(piece.start, end, piece.span->segment->start)) return false;
  for (std::uintptr_t at = piece.start; at < end;) {
    const std::size_t bytes = source.handles.bytes_at(at);
    if (!move_handle(source, at, piece.span)) return false;
    at += bytes;
  }
  return true;
}

// Maps one entirely free handle at the end. False: nothing changed.
bool Filling::move_handle(PageSpace& source, std::uintptr_t from, Span* near) noexcept {
  constexpr std::size_t kForSplit = SegmentList::kRecordsForSplit;
  const std::size_t pieces = pieces_.size() + 1;
  if (!target_.segments.reserve_records(pieces * kForSplit + SegmentList::kRecordsForOperation)) return false;
  if (!source.segments.reserve_records(pieces * kForSplit)) return false;
  const std::size_t bytes = source.handles.bytes_at(from);
  if (!PageMap::instance().prepare(end_, bytes)) return false;
  const Span* const span = source.segments.find(from, near);
  MEMPOOL_EXPECTS(span != nullptr && span->state == Span::State::free);
  try {
    pieces_.reserve(pieces);
  } catch (const std::bad_alloc&) {
    return false;
  }
  if (!source.stale.reserve(from)) return false;
  if (!source.handles.move(from, end_)) {
    source.stale.cancel(from);
    return false;
  }
  pieces_.push_back({&source, from, end_, bytes, near, span->moment});
  end_ += bytes;
  return true;
}

// ---- the end -----------------------------------------------------------------------------------------------------

bool Filling::finish(std::size_t& bytes_to_share, Refusal& why) noexcept {
  if (end_ == start_) return true;
  const std::size_t bytes = end_ - start_;
  if (!target_.memory.open(reinterpret_cast<void*>(start_), bytes)) {  // NOLINT(performance-no-int-to-ptr)
    undo();
    why = Refusal::backend;
    return false;
  }
  const Segment& segment = *hole_->segment;
  target_.segments.fill(hole_, start_, bytes, latest_moment());
  int range_changes = 0;
  for (const Piece& piece : pieces_) {
    if (piece.source != nullptr) {
      account_for_moved(piece, segment);
      range_changes += piece.source->segments.take_range_changes();
      continue;
    }
    const std::size_t shared = std::min(piece.bytes, bytes_to_share);
    bytes_to_share -= shared;
    ledger_.count_commit(piece.bytes, shared, target_.reserved);
  }
  range_changes += target_.segments.take_range_changes();
  if (range_changes != 0) ledger_.count_ranges(range_changes);
  return true;
}

// Until when earlier work may use some of it. Of other streams only idle memory has come.
StreamClock::Moment Filling::latest_moment() const noexcept {
  StreamClock::Moment latest = StreamClock::kAlways;
  for (const Piece& piece : pieces_) {
    if (piece.source != nullptr && &piece.source->clock == &target_.clock) latest = std::max(latest, piece.moment);
  }
  return latest;
}

void Filling::account_for_moved(const Piece& piece, const Segment& segment) noexcept {
  PageSpace& source = *piece.source;
  target_.handles.adopt(source.handles, piece.from, piece.to);
  target_.handles.join_with_previous(piece.to, segment.start);
  source.leave(source.segments.find(piece.from, piece.near), piece.from, piece.bytes);
  if (&source != &target_) source.segments.free().settle();
  ledger_.count_move(piece.bytes, source.reserved, target_.reserved);
}

// New memory goes back, moved memory to where it was.
void Filling::undo() noexcept {
  for (const Piece& piece : pieces_) {
    if (piece.source != nullptr) {
      piece.source->handles.move_back(piece.from);
      piece.source->stale.cancel(piece.from);
    } else if (target_.handles.decommit(piece.to)) {
      ledger_.unhold(piece.bytes);
    }
  }
}

}  // namespace mempool
