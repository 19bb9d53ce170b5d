// The pools that one thread has entered, of one device. The innermost is charged with the thread's new blocks.
//
// A stack belongs to its thread's cache, whose lock guards it: so an entry can be taken off by any thread, at once,
// also from the middle. Each entry keeps its account alive (AccountRegistry::keep).
#pragma once

#include <atomic>
#include <cstdint>

#include "common/expects.h"

namespace mempool {

class ThreadCache;
struct Account;

// An entry of that stack. Whoever enters a pool makes an entry and keeps it until the pool is left; `user` is for its
// maker's own use. Precondition of the destructor: the pool was left, by any thread, or the entry's thread has ended.
class PoolEntry {
 public:
  explicit PoolEntry(void* user_in = nullptr) : user(user_in) {}
  ~PoolEntry() { MEMPOOL_EXPECTS(home() == nullptr); }
  PoolEntry(const PoolEntry&) = delete;
  PoolEntry& operator=(const PoolEntry&) = delete;

  // The cache of the thread whose stack this is on; nullptr: on none.
  ThreadCache* home() const noexcept { return home_.load(std::memory_order_acquire); }
  // Entries count up in the order in which they were made current, over all threads and devices.
  std::uint64_t order() const noexcept { return order_; }

  void* const user;

 private:
  friend class PoolStack;
  std::atomic<ThreadCache*> home_{nullptr};
  Account* account_ = nullptr;  // nullptr: the root pool
  PoolEntry* below_ = nullptr;
  PoolEntry* above_ = nullptr;
  std::uint64_t order_ = 0;
};

class PoolStack {
 public:
  PoolStack() = default;
  PoolStack(const PoolStack&) = delete;
  PoolStack& operator=(const PoolStack&) = delete;
  // Entries outlive a cache in tests alone, where no thread is left to use them.
  ~PoolStack() {
    while (top_ != nullptr) pop(*top_);
  }

  // The account of the innermost entry; nullptr is the root pool. Without the lock it says only whether there is one.
  Account* current() const noexcept { return current_.load(std::memory_order_relaxed); }
  PoolEntry* top() const noexcept { return top_; }
  // What is entered from now on, by this thread, has a higher order().
  static std::uint64_t mark() noexcept;
  static PoolEntry* below(const PoolEntry& entry) noexcept { return entry.below_; }

  void push(PoolEntry& entry, Account* account, ThreadCache& home) noexcept;
  // Expects that the entry is on this stack. Returns its account.
  Account* pop(PoolEntry& entry) noexcept;

 private:
  PoolEntry* top_ = nullptr;
  std::atomic<Account*> current_{nullptr};
};

}  // namespace mempool
