// Sleep: a heap without memory that keeps all of its addresses.
#include "core/page_heap.h"

namespace mempool {

bool PageHeap::sleep(std::unique_ptr<Backup> backup) noexcept {
  if (asleep_) return true;
  if (backup != nullptr && !save_contents(*backup)) return false;
  backup_ = std::move(backup);
  ledger_.count_ranges(-backed_ranges());
  ledger_.share(-static_cast<std::int64_t>(shared_bytes_));
  asleep_ = true;
  if (give_up_all()) return true;
  // What was given up comes back. If that fails too the heap stays asleep, and wake() can be tried again.
  Refusal why = Refusal::none;
  return !wake(why);
}

bool PageHeap::wake(Refusal& why) noexcept {
  if (!asleep_) return true;
  if (!ledger_.try_hold(sleeping_bytes_)) {
    why = Refusal::limit;
    return false;
  }
  if (!take_all() || (backup_ != nullptr && !backup_->restore())) {
    ledger_.unhold(sleeping_bytes_);
    give_up_all();
    why = Refusal::backend;
    return false;
  }
  backup_.reset();
  asleep_ = false;
  ledger_.share(static_cast<std::int64_t>(shared_bytes_));
  ledger_.count_ranges(backed_ranges());
  return true;
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
    handles_.insert(sleeping_.extract(it));
  }
  return true;
}

bool PageHeap::save_contents(Backup& backup) const noexcept {
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool is_used = span->state == Span::State::block || span->state == Span::State::slab;
      if (is_used && !backup.save(span->address(), span->bytes)) return false;
    }
  }
  return true;
}

int PageHeap::backed_ranges() const noexcept {
  int ranges = 0;
  for (const Segment* segment = segments_; segment != nullptr; segment = segment->next) {
    bool open = false;
    for (const Span* span = segment->first; span != nullptr; span = span->next) {
      const bool backed = span->state != Span::State::hole;
      ranges += backed && !open ? 1 : 0;
      open = backed;
    }
  }
  return ranges;
}

// The last block was freed while the heap slept: there is nothing to wake up for.
void PageHeap::forget_sleeping() noexcept {
  ledger_.count_ranges(backed_ranges());
  ledger_.share(static_cast<std::int64_t>(shared_bytes_));
  while (!sleeping_.empty() && reserve_records(kRecordsForCut)) {
    const auto it = sleeping_.begin();
    make_hole(free_span_at(it->first, large_.first_of_highest()), it->first, it->second.bytes);
    sleeping_bytes_ -= it->second.bytes;
    sleeping_.erase(it);
  }
  if (!sleeping_.empty()) {  // no memory for records: as it was
    ledger_.share(-static_cast<std::int64_t>(shared_bytes_));
    ledger_.count_ranges(-backed_ranges());
    return;
  }
  asleep_ = false;
  backup_.reset();
}

}  // namespace mempool
