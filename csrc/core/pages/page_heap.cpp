#include "core/pages/page_heap.h"

#include <algorithm>

#include "common/align.h"
#include "common/expects.h"
#include "core/pages/page_map.h"
#include "core/pages/policy.h"

namespace mempool {
namespace {

std::int64_t as_signed(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }

// Where memory comes with its address a segment is as long as what asks for it.
std::size_t segment_bytes(const PhysicalMemory& memory, const Options& options) {
  const std::size_t granule = memory.granule_bytes();
  return memory.capabilities().backs_addresses ? granule : align_up(std::max(options.segment_bytes, granule), granule);
}

}  // namespace

PageHeap::PageHeap(PhysicalMemory& memory, Ledger& ledger, Ledger::Reserved& reserved, const Options& options,
                   Arena* arena, StreamClock& clock, bool movable)
    : ledger_(ledger),
      chunk_(align_up(policy::kChunkBytes, memory.granule_bytes())),
      space_(memory, clock, reserved, arena, segment_bytes(memory, options), movable),
      commit_policy_(memory, ledger, options.stitch, options.growth),
      sleeper_(memory, space_.handles, ledger, reserved) {}

PageHeap::~PageHeap() {
  forget_sleep();
  let_go();
  release(SIZE_MAX, true);
}

// ---- blocks ------------------------------------------------------------------------------------------------------

Span* PageHeap::allocate(std::size_t bytes, const Supply& supply, Refusal& why) noexcept {
  MEMPOOL_EXPECTS(!asleep() && bytes > 0 && bytes % kPageBytes == 0);
  if (!space_.segments.reserve_records(SegmentList::kRecordsForOperation)) {
    why = Refusal::metadata;
    return nullptr;
  }
  Request request{bytes, false, supply, why, 0};
  Span* const span = bytes <= kMediumMax ? allocate_medium(bytes, supply, why) : allocate_large(request);
  space_.segments.free().settle();
  if (span == nullptr) return nullptr;
  need_ = std::max(need_, need());
  span->state = Span::State::block;
  PageMap::instance().set_block(*span, span);
  return span;
}

Span* PageHeap::allocate_at(std::uintptr_t start, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(!asleep() && bytes > 0 && bytes % kPageBytes == 0);
  Span* span = space_.segments.find(start, nullptr);
  if (span == nullptr || span->state != Span::State::free || start < span->start || start + bytes > span->end() ||
      !space_.segments.reserve_records(SegmentList::kRecordsForOperation)) {
    return nullptr;
  }
  span = space_.segments.take(span, start, bytes);
  space_.segments.free().settle();
  span->state = Span::State::block;
  PageMap::instance().set_block(*span, span);
  return span;
}

void PageHeap::make_slab(Span* span, Slab* slab) noexcept {
  MEMPOOL_EXPECTS(span->state == Span::State::block);
  span->state = Span::State::slab;
  span->slab = slab;
  span->home = span->segment->arena;
  PageMap::instance().set_slab(*span, span);
}

void PageHeap::free(Span* span) noexcept {
  MEMPOOL_EXPECTS(span->state == Span::State::block || span->state == Span::State::slab);
  if (span->state == Span::State::slab) {
    PageMap::instance().set_slab(*span, nullptr);
  } else {
    PageMap::instance().set_block(*span, nullptr);
  }
  span->state = Span::State::free;
  span->slab = nullptr;
  span->moment = space_.note_free();
  span = space_.segments.put(span);
  if (span->shared) return_granules(span);
  space_.segments.free().settle();
}

// From the shared granules; then from what is left over between large blocks and is not worth saving, for which there
// is no other use; then from a new chunk. Where none is to be had the ends of large ranges serve, before anything
// is refused.
Span* PageHeap::allocate_medium(std::size_t bytes, const Supply& supply, Refusal& why) noexcept {
  const FreeRanges& free = space_.free();
  const std::size_t chunk = commit_policy_.chunk_bytes(bytes, chunk_);
  Span* span = free.shared().best_fit(bytes);
  if (span == nullptr) {
    span = free.large().best_fit(bytes);
    if (span != nullptr && is_worth_saving(*span, chunk)) span = nullptr;
  }
  if (span == nullptr && take_chunk(chunk, supply, why)) span = free.shared().best_fit(bytes);
  if (span == nullptr) span = free.large().best_fit(bytes);
  return span != nullptr ? space_.segments.take(span, span->start, bytes) : nullptr;
}

// Whole granules can move or make a chunk; those that cannot move are of use as a chunk alone.
bool PageHeap::is_worth_saving(const Span& span, std::size_t chunk) const noexcept {
  const std::size_t whole = space_.free().whole().key(span);
  return space_.capabilities.backs_addresses ? whole >= chunk : whole > 0;
}

Span* PageHeap::allocate_large(Request& request) noexcept {
  const FreeIndex& ranges = request.is_chunk ? space_.free().whole() : space_.free().large();
  Span* span = ranges.best_fit(request.bytes);
  if (span == nullptr) {
    if (!request.supply.may_grow || !grow(request)) return nullptr;
    span = ranges.best_fit(request.bytes);
    MEMPOOL_EXPECTS(span != nullptr);  // growth made a range that fits
    if (span == nullptr) {
      request.why = Refusal::backend;
      return nullptr;
    }
  }
  const std::uintptr_t start = request.is_chunk ? align_up(span->start, space_.granule) : span->start;
  return space_.segments.take(span, start, request.bytes);
}

// Moves one chunk of whole granules from the large ranges to the shared ones.
bool PageHeap::take_chunk(std::size_t bytes, const Supply& supply, Refusal& why) noexcept {
  // What is new of it counts as shared from the first, what is old changes sides in the end.
  Request request{bytes, true, supply, why, bytes};
  Span* const span = allocate_large(request);
  if (span == nullptr) return false;
  span->shared = true;
  if (request.bytes_to_share > 0) ledger_.share(as_signed(request.bytes_to_share), space_.reserved);
  shared_bytes_ += bytes;
  space_.segments.put(span);
  return true;
}

// Returns the whole granules in an indexed shared span to the large ranges.
void PageHeap::return_granules(Span* span) noexcept {
  const std::uintptr_t first = align_up(span->start, space_.granule);
  const std::uintptr_t last = align_down(span->end(), space_.granule);
  // Without records for the split the granules stay shared: the next free beside them finds them again.
  if (first >= last || !space_.segments.reserve_records(SegmentList::kRecordsForSplit)) return;
  span = space_.segments.take(span, first, last - first);
  span->shared = false;
  if (!sound_asleep()) ledger_.share(-as_signed(span->bytes), space_.reserved);
  shared_bytes_ -= span->bytes;
  space_.segments.put(span);
}

// ---- giving back -------------------------------------------------------------------------------------------------

std::size_t PageHeap::release(std::size_t bytes, bool may_wait, std::size_t most) noexcept {
  return give_back(std::min(bytes, most), may_wait, may_release(), most);
}

std::size_t PageHeap::release_unmovable() noexcept { return give_back(SIZE_MAX, true, true, SIZE_MAX); }

std::size_t PageHeap::give_back(std::size_t bytes, bool may_wait, bool may_release, std::size_t most) noexcept {
  if (asleep()) return 0;
  if (space_.capabilities.decommit_waits && !may_wait) return 0;
  // Memory that is still mapped where it was before is not the system's again when its handle is given up.
  space_.sweep(may_wait);
  space_.clock.poll();
  const FreeIndex& whole = space_.free().whole();
  bool may_give = may_release && space_.stale.empty() && bytes > 0 && whole.count() > 0;
  // A captured graph that used the memory may have run on any stream.
  if (may_give && !space_.is_movable) may_give = may_wait && space_.clock.wait_for_device();
  std::size_t given = 0;
  for (Span* span = may_give ? whole.first_of_highest() : nullptr; span != nullptr && given < bytes;) {
    Span* const next = whole.next_down(span);
    if (space_.clock.has_passed(span->moment) || (may_wait && space_.clock.wait(span->moment))) {
      given += space_.release_from(span, bytes - given, most - given, ledger_);
    }
    span = next;
  }
  space_.segments.remove_empty();
  if (const int changes = space_.segments.take_range_changes(); changes != 0) ledger_.count_ranges(changes);
  space_.segments.free().settle();
  return given;
}

// ---- sleep -------------------------------------------------------------------------------------------------------

PageHeap::Unsleeping PageHeap::fall_asleep(std::vector<UsedRange>& used, StreamClock::Obstacle& obstacle) {
  if (asleep()) return Unsleeping::at_rest;
  if (is_pinned()) return Unsleeping::pinned;
  // All work that uses the memory, or used it at another address, comes to its end first.
  obstacle = space_.clock.await(space_.clock.now());
  if (obstacle != StreamClock::Obstacle::none) return Unsleeping::in_use;
  space_.sweep(true);
  if (!space_.stale.empty()) return Unsleeping::mapped;
  for (const Segment* segment = first_segment(); segment != nullptr; segment = segment->next) {
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool is_used = span->state == Span::State::block || span->state == Span::State::slab;
      if (is_used) used.push_back({span->address(), span->bytes});
    }
  }
  sleeper_.fall();
  return Unsleeping::none;
}

void PageHeap::forget_sleep() noexcept {
  if (!asleep()) return;
  const bool is_counted = !sound_asleep();
  bool has_records = true;
  while (const Handle* const handle = sleeper_.first_given_up()) {
    has_records = space_.segments.reserve_records(SegmentList::kRecordsForSplit);
    if (!has_records) break;  // it sleeps on
    const auto start = reinterpret_cast<std::uintptr_t>(handle->address);
    Span* const span = space_.segments.find(start, space_.free().large().first_of_highest());
    space_.segments.make_hole(span, start, handle->bytes);
    sleeper_.forget_first();
  }
  space_.segments.free().settle();
  space_.segments.take_range_changes();  // the ledger counts none of a heap that is asleep
  if (!has_records) return;
  if (!is_counted) {
    if (const int ranges = space_.segments.backed_ranges(); ranges != 0) ledger_.count_ranges(ranges);
    ledger_.share(as_signed(shared_bytes_), space_.reserved);
  }
  sleeper_.forget_sleep();
}

}  // namespace mempool
