#include "core/allocator/stream_collector.h"

#include <memory>
#include <utility>

namespace mempool {

void StreamCollector::add_use(const FoundBlock& block, const void* address, StreamClock& clock) {
  deferred_.add_use(address, clock);
  const ArenaGuard guard(block.arena().mutex);  // a snapshot reads tags
  block.tag->account |= kUsedElsewhere;
}

// The charge goes before another thread can collect the block.
void StreamCollector::defer(const FoundBlock& block, void* address, ThreadCache* mine) noexcept {
  const BlockSize size = block.size();
  const std::uint32_t account = block.tag->account & ~kTagFlags;
  {
    const ArenaGuard guard(block.arena().mutex);  // a snapshot reads tags
    *block.tag = {kFreeTag, kUsedElsewhere};
  }
  accounts_.keep_for_block(account);
  pools_.uncharge(account, size, mine, true);
  if (deferred_.defer(block.span, {address, block.tag}, size, account)) return;
  end(block, address, size, account, nullptr);
}

// The other streams have caught up with the block's free.
void StreamCollector::end(const FoundBlock& block, void* address, BlockSize size, std::uint32_t account,
                          ThreadCache* keeper) noexcept {
  ledger_.end_waiting(size);
  if (observers_.any()) [[unlikely]] {
    observers_.on_completed({address, size, account, block.arena().stream(), &block.arena().family});
  }
  if (keeper != nullptr && block.is_of_slab() && keeper->serves(&block.arena())) {
    block.keep(address, *keeper);
  } else {
    block.give_back(address);
  }
  pools_.release_block(account);
}

void StreamCollector::collect(ThreadCache* keeper) noexcept {
  if (deferred_.empty() || !collecting_.try_lock()) return;
  free_collected(keeper);
  collecting_.unlock();
}

// Waits for another thread that is at it: all blocks whose streams have caught up are free then.
void StreamCollector::collect_all() noexcept {
  const std::lock_guard guard(collecting_);
  free_collected(nullptr);
}

void StreamCollector::free_collected(ThreadCache* keeper) noexcept {
  for (DeferredFrees::Block* next = deferred_.collect(); next != nullptr;) {
    const std::unique_ptr<DeferredFrees::Block> done(std::exchange(next, next->next));
    end({done->span, done->block.tag}, done->block.address, done->size, done->account, keeper);
  }
}

bool StreamCollector::await(std::size_t bytes) noexcept {
  const auto waiting = [this] { return static_cast<std::size_t>(ledger_.waiting_bytes()); };
  const std::size_t before = waiting();
  collect_all();
  bool any = waiting() < before;
  if (any && waiting() + bytes <= before) return true;
  for (std::size_t most = deferred_.count(); most > 0; --most) {
    if (!deferred_.wait_for_one(bytes)) break;
    any = true;
    collect_all();
    if (waiting() + bytes <= before) break;
  }
  return any;
}

}  // namespace mempool
