// Free blocks of the default arena that one thread keeps for itself, and that thread's shard of the ledger.
//
// `lock` guards everything here. Its own thread takes it for each allocation, and so nearly always without contention;
// others take it to recall the blocks (a limit was reached, trim, a pool closes), to read statistics, at fork and at
// thread exit. Lock order: registry, then thread caches, then arenas, then the ledger.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/spin_lock.h"
#include "core/arena.h"
#include "core/ledger.h"

namespace mempool {

class CachingAllocator;

class ThreadCache {
 public:
  ThreadCache(CachingAllocator& owner, Arena& arena, Ledger& ledger, std::size_t most_bytes);

  // Small blocks. pop() is false when the class is empty; then refill() takes a batch from the arena.
  bool pop(std::size_t size_class, SmallBlock& out) noexcept {
    Bin& bin = bins_[size_class];
    if (bin.count == 0) return false;
    out = slots_[bin.first + --bin.count];
    bytes_ -= kSizeClasses[size_class].block_bytes;
    return true;
  }
  bool refill(std::size_t size_class, SmallBlock& out, Refusal& why) noexcept;
  void push(std::size_t size_class, const SmallBlock& block) noexcept {
    Bin& bin = bins_[size_class];
    const std::size_t size = kSizeClasses[size_class].block_bytes;
    if (bin.count == bin.capacity || bytes_ + size > most_bytes_) [[unlikely]] {
      make_room(size_class);
      if (size > most_bytes_) {
        give_back(block);
        return;
      }
    }
    slots_[bin.first + bin.count++] = block;
    bytes_ += size;
  }

  // Medium blocks, kept by their exact number of pages.
  Span* pop_medium(std::size_t bytes) noexcept {
    Span*& head = medium_[medium_bin(bytes)];
    Span* const span = head;
    if (span == nullptr) return nullptr;
    head = span->cached_next;
    bytes_ -= bytes;
    return span;
  }
  void push_medium(Span* span) noexcept;

  // Returns every block to the arena.
  void flush() noexcept;
  void fold() noexcept { ledger_.fold(shard); }
  void fold_if_due() noexcept {
    if (shard.due()) [[unlikely]]
      fold();
  }
  std::size_t bytes() const noexcept { return bytes_; }

  SpinLock lock;
  CachingAllocator& owner;
  Ledger::Shard shard;
  Account* current =
      nullptr;  // the pool of this thread's new blocks; nullptr is the root. Its own thread alone uses it.

 private:
  struct Bin {
    std::uint16_t count = 0;
    std::uint16_t capacity = 0;
    std::uint32_t first = 0;
  };
  static constexpr std::size_t kMediumBins = (kMediumMax - kSmallMax) / kPageBytes;
  static std::size_t medium_bin(std::size_t bytes) { return (bytes - kSmallMax) / kPageBytes - 1; }

  void make_room(std::size_t size_class) noexcept;
  void give_back(const SmallBlock& block) noexcept;

  Arena& arena_;
  Ledger& ledger_;
  const std::size_t most_bytes_;
  std::size_t bytes_ = 0;
  std::array<Bin, kSmallClasses> bins_{};
  std::array<Span*, kMediumBins> medium_{};
  std::unique_ptr<SmallBlock[]> slots_;
};

}  // namespace mempool
