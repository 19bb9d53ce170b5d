#include "core/pages/page_space.h"

#include "common/align.h"

namespace mempool {

bool PageSpace::may_lend(StreamClock::Moment moment, const PageSpace& receiver, bool may_wait) noexcept {
  // What comes later on the same stream comes after the work that still uses it. A graph will run on any stream.
  if ((&receiver.clock == &clock && receiver.is_movable) || clock.has_passed(moment)) return true;
  return may_wait && clock.wait(moment);
}

void PageSpace::leave(Span* span, std::uintptr_t start, std::size_t bytes) noexcept {
  if (capabilities.can_alias) {
    stale.set(segments.make_stale(span, start, bytes));
  } else {
    segments.make_hole(span, start, bytes);
  }
}

void PageSpace::sweep(bool may_wait) noexcept {
  if (stale.empty()) return;
  mark();
  clock.poll();
  stale.unmap_idle(may_wait, [this](Span* span) {
    span->state = Span::State::hole;
    segments.put(span);
  });
}

std::size_t PageSpace::release_from(Span* span, std::size_t bytes, std::size_t most, Ledger& ledger) noexcept {
  std::uintptr_t low = align_up(span->start, granule);
  const std::uintptr_t high = align_down(span->end(), granule);
  if (low >= high) return 0;
  if (capabilities.can_cut) {
    if (bytes < high - low) low = align_down(high - bytes, granule);
    if (high - low > most) low += granule;
    if (low >= high) return 0;
    if (!handles.cut_at(low) || !handles.cut_at(high)) return 0;
  }
  std::size_t given = 0;
  Span* rest = span;  // what is left of the span below the handles given back
  for (std::uintptr_t end = high; rest != nullptr && given < bytes;) {
    const Handle* const handle = handles.highest_within(low, end);
    if (handle == nullptr || !segments.reserve_records(SegmentList::kRecordsForSplit)) break;
    const auto start = reinterpret_cast<std::uintptr_t>(handle->address);
    const std::size_t handle_bytes = handle->bytes;
    if (handle_bytes > most - given) break;
    const std::uint32_t generation = handle->generation;
    if (!handles.decommit(start)) break;
    rest->segment->is_given_back = capabilities.backs_addresses;
    given += handle_bytes;
    ledger.count_decommit(handle_bytes, 0, generation, reserved);
    rest = segments.make_hole(rest, start, handle_bytes);
    end = start;
  }
  return given;
}

}  // namespace mempool
