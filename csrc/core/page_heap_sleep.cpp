// Sleep: a heap without memory that keeps all of its addresses.
#include <utility>

#include "core/page_heap.h"

namespace mempool {

bool PageHeap::fall_asleep(std::vector<UsedRange>& used) {
  if (asleep() || !pinned_.empty()) return false;
  // All work that uses the memory, or used it at another address, comes to its end first.
  if (!clock_.wait(clock_.now())) return false;
  sweep(true);
  if (!stale_.empty()) return false;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool is_used = span->state == Span::State::block || span->state == Span::State::slab;
      if (is_used) used.push_back({span->address(), span->bytes});
    }
  }
  rest_ = Rest::falling_asleep;
  return true;
}

void PageHeap::stay_awake() noexcept { rest_ = Rest::awake; }

bool PageHeap::sleep(std::unique_ptr<Backup> backup) noexcept {
  ledger_.count_ranges(-backed_ranges());
  ledger_.share(-static_cast<std::int64_t>(shared_bytes_));
  rest_ = Rest::asleep;
  if (give_up_all()) {
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
  if (!take_all()) {
    ledger_.unhold(sleeping_bytes_);
    give_up_all();
    why = Refusal::backend;
    return false;
  }
  rest_ = Rest::waking;
  return true;
}

void PageHeap::wake() noexcept {
  backup_.reset();
  rest_ = Rest::awake;
  ledger_.share(static_cast<std::int64_t>(shared_bytes_));
  ledger_.count_ranges(backed_ranges());
}

void PageHeap::sleep_on() noexcept {
  rest_ = Rest::asleep;
  give_up_all();
}

// False: the backend kept some.
bool PageHeap::give_up_all() noexcept {
  while (!handles_.empty()) {
    const auto it = handles_.begin();
    if (!memory_.decommit(it->second)) return false;
    sleeping_bytes_ += it->second.bytes;
    ledger_.count_decommit(it->second.bytes);
    sleeping_.insert(handles_.extract(it));
  }
  return true;
}

// Bytes of `sleeping_` are held for it already. False: the backend refused some.
bool PageHeap::take_all() noexcept {
  while (!sleeping_.empty()) {
    const auto it = sleeping_.begin();
    Handle& handle = it->second;
    if (!memory_.commit(handle.address, handle.bytes, handle)) return false;
    sleeping_bytes_ -= handle.bytes;
    ledger_.count_commit(handle.bytes);
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
  if (!is_counted()) {
    ledger_.count_ranges(backed_ranges());
    ledger_.share(static_cast<std::int64_t>(shared_bytes_));
  }
  while (!sleeping_.empty()) {
    if (!reserve_records(kRecordsForCut)) {  // no memory for records: it sleeps on
      ledger_.share(-static_cast<std::int64_t>(shared_bytes_));
      ledger_.count_ranges(-backed_ranges());
      return;
    }
    const auto it = sleeping_.begin();
    make_hole(free_span_at(it->first, large_.first_of_highest()), it->first, it->second.bytes);
    sleeping_bytes_ -= it->second.bytes;
    sleeping_.erase(it);
  }
  rest_ = Rest::awake;
}

}  // namespace mempool
