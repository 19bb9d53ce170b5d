#include "core/allocator/deferred_frees.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "core/allocator/policy.h"

namespace mempool {
namespace {

using Guard = std::lock_guard<AdaptiveMutex>;

}  // namespace

DeferredFrees::~DeferredFrees() {
  while (oldest_ != nullptr) delete std::exchange(oldest_, oldest_->next);
}

void DeferredFrees::add_use(const void* address, StreamClock& clock) {
  const Guard guard(mutex_);
  std::vector<StreamClock*>& uses = uses_[address];
  if (std::find(uses.begin(), uses.end(), &clock) == uses.end()) uses.push_back(&clock);
}

void DeferredFrees::count_in(BlockSize size) noexcept {
  waiting_.fetch_add(1, std::memory_order_relaxed);
  if (!size.is_small()) return;
  by_size_[bucket_of(size.rounded)].fetch_add(1, std::memory_order_relaxed);
  if (small_waiting_++ == 0) detours_.set(Detours::waiting, true);
}

void DeferredFrees::count_out(BlockSize size) noexcept {
  waiting_.fetch_sub(1, std::memory_order_relaxed);
  if (!size.is_small()) return;
  by_size_[bucket_of(size.rounded)].fetch_sub(1, std::memory_order_relaxed);
  if (--small_waiting_ == 0) detours_.set(Detours::waiting, false);
}

DeferredFrees::Line& DeferredFrees::line_of(StreamClock& clock) {
  const auto found = std::find_if(lines_.begin(), lines_.end(), [&](const Line& line) { return line.clock == &clock; });
  if (found != lines_.end()) return *found;
  lines_.push_back({&clock});
  return lines_.back();
}

bool DeferredFrees::defer(Span* span, const SmallBlock& block, BlockSize size, std::uint32_t account) noexcept {
  std::vector<StreamClock*> clocks;
  {
    const Guard guard(mutex_);
    if (const auto found = uses_.find(block.address); found != uses_.end()) {
      clocks = std::move(found->second);
      uses_.erase(found);
    }
    if (clocks.empty()) return false;
    if (enter(clocks, span, block, size, account)) return true;
  }
  // Without a record its streams are waited for here and now.
  return !std::all_of(clocks.begin(), clocks.end(), [](StreamClock* clock) { return clock->wait(clock->now()); });
}

bool DeferredFrees::enter(const std::vector<StreamClock*>& clocks, Span* span, const SmallBlock& block, BlockSize size,
                          std::uint32_t account) noexcept {
  std::unique_ptr<Block> record;
  std::size_t entered = 0;
  try {
    record = std::make_unique<Block>(Block{span, block, size, account});
    record->uses.reserve(clocks.size());
    for (StreamClock* const clock : clocks) {
      record->uses.push_back({clock, clock->now()});
      line_of(*clock).queue.emplace_back(record->uses.back().moment, record.get());
      ++entered;
    }
  } catch (const std::bad_alloc&) {
    for (std::size_t i = 0; i < entered; ++i) line_of(*clocks[i]).queue.pop_back();
    return false;
  }
  for (const Use& use : record->uses) {
    Line& line = line_of(*use.clock);
    if (++line.unmarked < kShareAnEvent && size.is_small()) continue;
    line.clock->mark(use.moment);
    line.unmarked = 0;
  }
  record->pending = clocks.size();
  record->previous = newest_;
  (newest_ != nullptr ? newest_->next : oldest_) = record.get();
  newest_ = record.release();
  count_in(size);
  return true;
}

DeferredFrees::Block* DeferredFrees::collect() noexcept {
  const Guard guard(mutex_);
  Block* done = nullptr;
  for (Line& line : lines_) {
    if (line.queue.empty()) continue;
    line.clock->mark(line.queue.back().first);
    line.clock->poll();
    line.unmarked = 0;
    while (!line.queue.empty() && line.clock->has_passed(line.queue.front().first)) {
      Block* const block = line.queue.front().second;
      line.queue.pop_front();
      if (--block->pending > 0) continue;
      (block->previous != nullptr ? block->previous->next : oldest_) = block->next;
      (block->next != nullptr ? block->next->previous : newest_) = block->previous;
      block->next = std::exchange(done, block);
      count_out(block->size);
    }
  }
  return done;
}

bool DeferredFrees::wait_for_one(std::size_t bytes) noexcept {
  std::vector<std::vector<Use>> tries;
  {
    const Guard guard(mutex_);
    try {
      for (const bool only_large : {true, false}) {
        for (const Block* block = oldest_; block != nullptr && tries.size() < kMostTried; block = block->next) {
          if ((block->size.rounded >= bytes) == only_large) tries.push_back(block->uses);
        }
      }
    } catch (const std::bad_alloc&) {
      if (tries.empty()) return false;
    }
  }
  // With no lock held: other threads free and allocate meanwhile. What a capture keeps from an answer is passed over.
  return std::any_of(tries.begin(), tries.end(), [](const std::vector<Use>& uses) {
    return std::all_of(uses.begin(), uses.end(), [](const Use& use) { return use.clock->wait(use.moment); });
  });
}

}  // namespace mempool
