// The thread cache: free blocks of one arena that one thread keeps for itself, and its shards of the ledger. The arena
// is that of one stream in the device's default family: another one's once kStrangers requests in a row were for
// others.
//
// `lock` guards everything here. Its own thread takes it for each allocation, and so nearly always without contention;
// others take it to recall the blocks (a limit was reached, trim, a pool closes), to read statistics, at fork and at
// thread exit. core/allocator/device_parts.h has the order of locks.
//
// Small blocks are kept up to a number of bytes, larger ones by number: enough of both that threads hardly meet at the
// arena's lock. They return to the arena, from all threads, before it asks for memory, so that nothing more is held
// because of them. Yet a block that waits in a cache has not coalesced with its free neighbours, so later blocks are
// placed worse. Where any granule can move, moving free memory makes up for that; elsewhere a cache keeps one block of
// each larger kind, and only until the thread asks for another size.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "common/expects.h"
#include "common/owner_lock.h"
#include "core/accounts/block_size.h"
#include "core/accounts/shards.h"
#include "core/allocator/policy.h"
#include "core/pages/arena.h"
#include "core/threads/pool_stack.h"

namespace mempool {

class ThreadCache {
 public:
  // Whose cache it is.
  class Owner {
   public:
    // Its thread has ended, or is not in this forked child: its blocks, its counts and its hold on pools return.
    virtual void take_back(ThreadCache& ended) noexcept = 0;

   protected:
    ~Owner() = default;
  };

  ThreadCache(Owner& owner, Arena& arena, std::size_t most_small_bytes);

  // Whether a block of that arena may wait here. Called by the thread itself, without the lock too.
  bool serves(const void* arena) const noexcept { return arena == served_; }
  StreamId stream() const noexcept { return stream_; }
  // From now on it keeps blocks of that arena. Expects that the lock is held.
  void serve(Arena& arena) noexcept;

  // Small blocks. pop() is false when the class is empty; then refill() takes a batch from the arena, whose mutex
  // the caller holds. push() is false when there is no room; then push_or_give_back() makes some.
  bool pop(std::size_t size_class, SmallBlock& out) noexcept {
    Bin& bin = bins_[size_class];
    if (bin.count == 0) [[unlikely]]
      return false;
    out = bin.slots[--bin.count];
    set_small_bytes(small_bytes() - bin.block_bytes);
    return true;
  }
  bool push(std::size_t size_class, const SmallBlock& block) noexcept {
    Bin& bin = bins_[size_class];
    const std::size_t bytes = small_bytes() + bin.block_bytes;
    if (bin.count == bin.capacity || bytes > most_small_bytes_) [[unlikely]]
      return false;
    bin.slots[bin.count++] = block;
    set_small_bytes(bytes);
    return true;
  }
  bool refill(std::size_t size_class, SmallBlock& out, const Supply& supply, Refusal& why) noexcept;
  void push_or_give_back(std::size_t size_class, const SmallBlock& block) noexcept;

  // Medium blocks, found by their exact number of pages.
  Span* pop_medium(std::size_t bytes) noexcept {
    Span*& head = medium_[medium_bin(bytes)];
    Span* const span = head;
    if (span == nullptr) return nullptr;
    head = span->cached_next;
    --medium_count_;
    set_span_bytes(span_bytes() - bytes);
    return span;
  }
  void push_medium(Span* span) noexcept {
    if (medium_count_ == most_medium_) [[unlikely]]
      make_room_for_medium(medium_bin(span->bytes));
    newest_bin_ = medium_bin(span->bytes);
    Span*& head = medium_[newest_bin_];
    span->cached_next = head;
    head = span;
    ++medium_count_;
    set_span_bytes(span_bytes() + span->bytes);
  }

  // A block of that size came from the arena: how many more should, for the requests that follow.
  std::size_t more_medium(std::size_t bytes) noexcept {
    const std::size_t bin = medium_bin(bytes);
    refill_ = bin == refilled_bin_ ? std::min(2 * refill_, kMostRefilled) : 1;
    refilled_bin_ = bin;
    MEMPOOL_EXPECTS(refill_ > 0);
    return keeps_many_ && medium_count_ + refill_ <= most_medium_ ? refill_ - 1 : 0;
  }

  // Large blocks of this thread's own that were freed last, found by their exact size.
  Span* pop_large(std::size_t bytes) noexcept {
    for (std::size_t i = large_count_; i-- > 0;) {
      if (large_sizes_[i] != bytes) continue;
      Span* const span = large_[i];
      --large_count_;
      for (; i < large_count_; ++i) {
        large_sizes_[i] = large_sizes_[i + 1];
        large_[i] = large_[i + 1];
      }
      set_span_bytes(span_bytes() - bytes);
      return span;
    }
    return nullptr;
  }
  // pop_medium() or pop_large() has found nothing: the arena is asked next.
  void make_way(bool is_small) noexcept {
    if (keeps_many_) return;
    is_small ? evict_medium(medium_count_) : evict_large(large_count_);
  }
  void push_large(Span* span) noexcept {
    if (large_count_ == most_large_) [[unlikely]]
      evict_large((most_large_ + 1) / 2);
    large_sizes_[large_count_] = span->bytes;
    large_[large_count_++] = span;
    set_span_bytes(span_bytes() + span->bytes);
  }

  // Either of them.
  [[gnu::always_inline]] Span* pop_span(BlockSize size) noexcept {
    return size.is_small() ? pop_medium(size.rounded) : pop_large(size.rounded);
  }
  [[gnu::always_inline]] void push_span(Span* span, BlockSize size) noexcept {
    size.is_small() ? push_medium(span) : push_large(span);
  }

  // Whether the arena takes the small blocks back before it grows. May be called without the lock.
  bool is_worth_recalling() const noexcept {
    return small_bytes() >= (keeps_many_ ? kSmallBytesWorthwhile : kSmallBytesWorthwhileOfWhole);
  }
  // Both may be read without the lock; the second is of medium and large ones.
  std::size_t small_bytes() const noexcept { return small_bytes_.load(std::memory_order_relaxed); }
  std::size_t span_bytes() const noexcept { return span_bytes_.load(std::memory_order_relaxed); }
  // What has waited since the last call, with no request for it.
  struct Unused {
    std::size_t small_blocks = 0;
    std::size_t span_bytes = 0;
  };
  Unused take_unused() noexcept { return {take_unused_small(), std::exchange(least_span_bytes_, span_bytes())}; }

  // Returns every block, or the small ones, or the medium and large ones, to the arena.
  void flush() noexcept {
    flush_small();
    flush_spans();
  }
  void flush_small() noexcept;
  void flush_spans() noexcept {
    evict_medium(medium_count_);
    evict_large(large_count_);
  }

  OwnerLock lock;
  Owner& owner;
  Shards shards;
  PoolStack pools;
  int strange_requests = 0;  // in a row, for other streams than the one that is served; its own thread alone uses it

 private:
  struct Bin {
    SmallBlock* slots = nullptr;
    std::uint16_t count = 0;
    std::uint16_t capacity = 0;
    std::uint32_t block_bytes = 0;
    std::uint16_t marked = 0;  // blocks that were there at take_unused(); the last of them has kMarkedTag
  };
  static constexpr std::size_t kMediumBins = (kMediumMax - kSmallMax) / kPageBytes;
  static std::size_t medium_bin(std::size_t bytes) { return (bytes - kSmallMax) / kPageBytes - 1; }

  // Only the holder of the lock writes, so that no read-modify-write is needed.
  void set_small_bytes(std::size_t bytes) noexcept { small_bytes_.store(bytes, std::memory_order_relaxed); }
  void set_span_bytes(std::size_t bytes) noexcept {
    span_bytes_.store(bytes, std::memory_order_relaxed);
    least_span_bytes_ = least_span_bytes_ < bytes ? least_span_bytes_ : bytes;
  }
  void make_room_for_medium(std::size_t bin) noexcept;
  void evict_medium(std::size_t count, std::size_t but = kMediumBins) noexcept;  // the largest, and none of that bin
  void evict_large(std::size_t count) noexcept;                                  // the oldest
  void make_room(std::size_t size_class) noexcept;
  bool enlarge(std::size_t size_class) noexcept;
  void give_back_small(const Bin* but) noexcept;
  std::size_t take_unused_small() noexcept;

  Arena* arena_;
  StreamId stream_;
  const void* served_;  // the arena; nullptr where no block may wait
  const std::size_t most_small_bytes_;
  const bool keeps_many_;  // blocks of each kind, else one
  const std::uint16_t most_in_bin_;
  const std::size_t most_medium_;
  const std::size_t most_large_;
  std::atomic<std::size_t> small_bytes_{0};
  std::array<Bin, kSmallClasses> bins_{};
  std::array<Span*, kMediumBins> medium_{};
  std::size_t medium_count_ = 0;
  std::size_t newest_bin_ = 0;                         // of medium_
  std::size_t refilled_bin_ = kMediumBins;             // that of the last refill; kMediumBins: there was none
  std::size_t refill_ = 0;                             // blocks that it took
  std::array<std::size_t, kMostLarge> large_sizes_{};  // the oldest first
  std::array<Span*, kMostLarge> large_{};
  std::size_t large_count_ = 0;
  std::atomic<std::size_t> span_bytes_{0};
  std::size_t least_span_bytes_ = 0;                                // since take_unused()
  std::array<std::unique_ptr<SmallBlock[]>, kSmallClasses> slots_;  // of the bins
};

}  // namespace mempool
