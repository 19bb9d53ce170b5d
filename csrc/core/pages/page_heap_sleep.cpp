// Sleep: a heap without memory that keeps all of its addresses.
#include <algorithm>
#include <utility>

#include "core/pages/page_heap.h"

namespace mempool {

PageHeap::Unsleeping PageHeap::fall_asleep(std::vector<UsedRange>& used, StreamClock::Obstacle& obstacle) {
  if (asleep()) return Unsleeping::at_rest;
  if (is_pinned()) return Unsleeping::pinned;
  // All work that uses the memory, or used it at another address, comes to its end first.
  obstacle = clock_.await(clock_.now());
  if (obstacle != StreamClock::Obstacle::none) return Unsleeping::in_use;
  sweep(true);
  if (!stale_.empty()) return Unsleeping::mapped;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool is_used = span->state == Span::State::block || span->state == Span::State::slab;
      if (is_used) used.push_back({span->address(), span->bytes});
    }
  }
  rest_ = Rest::falling_asleep;
  return Unsleeping::none;
}

void PageHeap::stay_awake() noexcept { rest_ = Rest::awake; }

bool PageHeap::sleep(std::unique_ptr<Backup> backup) noexcept {
  ledger_.count_ranges(-backed_ranges());
  rest_ = Rest::asleep;
  if (give_up_all(shared_bytes_)) {
    backup_ = std::move(backup);
    return true;
  }
  // What was given up comes back. If that fails too the heap sleeps, and waking it can be tried again.
  backup_ = std::move(backup);
  Refusal why = Refusal::none;
  if (!start_waking(why)) return true;
  if (backup_ != nullptr && !backup_->restore()) {
    sleep_on();
    return true;
  }
  wake();
  return false;
}

bool PageHeap::start_waking(Refusal& why) noexcept {
  if (rest_ != Rest::asleep) return false;
  if (!ledger_.try_hold(sleeping_bytes_)) {
    why = Refusal::limit;
    return false;
  }
  still_to_share_ = shared_bytes_;
  const bool is_taken = take_all();
  const std::size_t left = std::exchange(still_to_share_, 0);
  if (!is_taken) {
    ledger_.unhold(sleeping_bytes_);
    give_up_all(shared_bytes_ - left);
    why = Refusal::backend;
    return false;
  }
  ledger_.share(static_cast<std::int64_t>(left));  // of what the backend had kept
  ledger_.count_ranges(backed_ranges());
  rest_ = Rest::waking;
  return true;
}

void PageHeap::wake() noexcept {
  backup_.reset();
  rest_ = Rest::awake;
}

void PageHeap::sleep_on() noexcept {
  ledger_.count_ranges(-backed_ranges());
  rest_ = Rest::asleep;
  give_up_all(shared_bytes_);
}

// `shared_bytes`: those that the ledger counts as shared; none are any more. False: the backend kept some memory.
bool PageHeap::give_up_all(std::size_t shared_bytes) noexcept {
  while (!handles_.empty()) {
    const auto it = handles_.begin();
    const std::size_t bytes = it->second.bytes;
    if (!memory_.decommit(it->second)) break;
    const std::size_t shared = std::min(bytes, shared_bytes);
    shared_bytes -= shared;
    sleeping_bytes_ += bytes;
    ledger_.count_decommit(bytes, shared);
    sleeping_.insert(handles_.extract(it));
  }
  ledger_.share(-static_cast<std::int64_t>(shared_bytes));
  return handles_.empty();
}

// Bytes of `sleeping_` are held for it already. False: the backend refused some.
bool PageHeap::take_all() noexcept {
  while (!sleeping_.empty()) {
    const auto it = sleeping_.begin();
    Handle& handle = it->second;
    if (!memory_.commit(handle.address, handle.bytes, handle)) return false;
    sleeping_bytes_ -= handle.bytes;
    count_commit(handle.bytes);
    const Handle taken = handle;
    handles_.insert(sleeping_.extract(it));
    if (!memory_.open(taken.address, taken.bytes)) return false;
  }
  return true;
}

int PageHeap::backed_ranges() const noexcept {
  int ranges = 0;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    bool open = false;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool backed = span->is_backed();
      ranges += backed && !open ? 1 : 0;
      open = backed;
    }
  }
  return ranges;
}

void PageHeap::forget_sleep() noexcept {
  if (!asleep()) return;
  backup_.reset();
  const bool was_counted = is_counted();
  int ranges = was_counted ? 0 : backed_ranges();
  counting_ranges_ = &ranges;
  while (!sleeping_.empty()) {
    if (!reserve_records(kRecordsForCut)) {  // no memory for records: it sleeps on
      counting_ranges_ = nullptr;
      settle_ranges();
      return;
    }
    const auto it = sleeping_.begin();
    make_hole(free_span_at(it->first, large_.first_of_highest()), it->first, it->second.bytes);
    sleeping_bytes_ -= it->second.bytes;
    sleeping_.erase(it);
  }
  counting_ranges_ = nullptr;
  settle_ranges();
  if (ranges != 0) ledger_.count_ranges(ranges);
  if (!was_counted) ledger_.share(static_cast<std::int64_t>(shared_bytes_));
  rest_ = Rest::awake;
}

}  // namespace mempool
