// Deferred frees: blocks that wait, after their free, for the other streams that use them (torch's record_stream).
//
// add_use() notes that work on another stream uses a block. At its free, the block notes the present moment of each of
// these streams, and is reused only after all of these moments have passed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "common/spin_lock.h"
#include "core/accounts/block_size.h"
#include "core/observe/detours.h"
#include "core/pages/slab_heap.h"
#include "core/streams/stream_clock.h"

namespace mempool {

class DeferredFrees {
 public:
  struct Use {
    StreamClock* clock;
    StreamClock::Moment moment;
  };
  struct Block {
    Span* span = nullptr;
    SmallBlock block;
    BlockSize size;
    std::uint32_t account = 0;
    std::vector<Use> uses{};
    std::size_t pending = 0;  // uses that are not over
    Block* previous = nullptr;
    Block* next = nullptr;
  };

  explicit DeferredFrees(Detours& detours) noexcept : detours_(detours) {}
  DeferredFrees(const DeferredFrees&) = delete;
  DeferredFrees& operator=(const DeferredFrees&) = delete;
  // What waits still is forgotten: for tests, whose devices end with nothing pending.
  ~DeferredFrees();

  // From now on the live block is used on that stream, too. Throws std::bad_alloc.
  void add_use(const void* address, StreamClock& clock);
  // A block that add_use() was called for is freed: collect() returns it once its uses are over. False: its uses are
  // over, because there was no memory for a record and they were waited for. Where even that is not possible, no
  // request gets it again.
  bool defer(Span* span, const SmallBlock& block, BlockSize size, std::uint32_t account) noexcept;
  bool empty() const noexcept { return waiting_.load(std::memory_order_relaxed) == 0; }
  // False: no block of exactly that size waits, or it is none of torch's small pool. A large one, for which nothing
  // free serves, is looked for before its arena grows; small ones find other free blocks for long. Takes no lock.
  bool may_have(std::size_t rounded) const noexcept {
    return rounded <= kSmallPoolMax && by_size_[bucket_of(rounded)].load(std::memory_order_relaxed) > 0;
  }
  std::size_t count() const noexcept { return waiting_.load(std::memory_order_relaxed); }

  // Blocks whose uses are over, linked by `next`, in no order; the caller frees them and deletes the records.
  Block* collect() noexcept;
  // Blocks until the uses of one block are over: the oldest of at least `bytes`, else the oldest. False: none waits, or
  // none can be waited for.
  bool wait_for_one(std::size_t bytes) noexcept;
  AdaptiveMutex& lock_for_fork() noexcept { return mutex_; }

 private:
  struct Line {
    StreamClock* clock;
    std::size_t unmarked = 0;
    std::deque<std::pair<StreamClock::Moment, Block*>> queue{};
  };
  static constexpr unsigned kBucketBits = 6;
  // By Fibonacci hashing: sizes that are used together are often powers of two, which share their lower bits.
  static std::size_t bucket_of(std::size_t rounded) noexcept {
    return static_cast<std::size_t>(std::uint64_t{rounded} * 0x9E3779B97F4A7C15u >> (64 - kBucketBits));
  }
  // Both expect that the mutex is held.
  void count_in(BlockSize size) noexcept;
  void count_out(BlockSize size) noexcept;
  Line& line_of(StreamClock& clock);
  // Expects that the mutex is held. False, and nothing done, without memory.
  bool enter(const std::vector<StreamClock*>& clocks, Span* span, const SmallBlock& block, BlockSize size,
             std::uint32_t account) noexcept;

  Detours& detours_;
  AdaptiveMutex mutex_;  // guards the rest; the counts may be read without it
  std::unordered_map<const void*, std::vector<StreamClock*>> uses_;
  std::vector<Line> lines_;
  Block* oldest_ = nullptr;
  Block* newest_ = nullptr;
  std::atomic<std::size_t> waiting_{0};
  std::size_t small_waiting_ = 0;                                                    // of torch's small pool
  std::array<std::atomic<std::uint32_t>, std::size_t{1} << kBucketBits> by_size_{};  // these by bucket_of()
};

}  // namespace mempool
