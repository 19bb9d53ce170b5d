// A biased lock: its owner takes it all the time at the price of plain stores, other threads take it hardly ever.
//
// The owner pays two plain stores and a load. Another thread sets a flag and then makes every thread of the process
// pass a memory barrier (Linux: membarrier): after that the owner has either seen the flag, or been seen inside.
// Where the system has no membarrier, and under ThreadSanitizer, which cannot follow it, this is a spin lock.
// The idea is that of D. Dice et al., "Quickly Reacquirable Locks", 2003; the barrier is membarrier(2).
#pragma once

#include <atomic>

#include "common/expects.h"
#include "common/spin_lock.h"

namespace mempool {

class OwnerLock {
 public:
  // For the owner.
  void lock() noexcept {
    if (!try_lock()) [[unlikely]]
      lock_contended();
  }
  // try_lock() and unlock() are on the hot path of every block.
  // False when another thread has the lock or wants it: lock() then waits.
  [[gnu::always_inline]] bool try_lock() noexcept {
    if (symmetric_) [[unlikely]]
      return !busy_.exchange(true, std::memory_order_acquire);
    busy_.store(true, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (!wanted_.load(std::memory_order_acquire)) [[likely]]
      return true;
    busy_.store(false, std::memory_order_release);
    return false;
  }
  [[gnu::always_inline]] void unlock() noexcept {
    MEMPOOL_EXPECTS(busy_.load(std::memory_order_relaxed));
    busy_.store(false, std::memory_order_release);
  }

  // For any thread; for the owner only while it is outside. Three steps, so that one barrier serves many locks: ask()
  // for each lock, pass_barrier() once, await() for each lock.
  void ask() noexcept {
    others_.lock();
    if (!symmetric_) wanted_.store(true, std::memory_order_seq_cst);
  }
  static void pass_barrier() noexcept;
  void await() noexcept;
  void release() noexcept {
    MEMPOOL_EXPECTS((symmetric_ ? busy_ : wanted_).load(std::memory_order_relaxed));
    (symmetric_ ? busy_ : wanted_).store(false, std::memory_order_release);
    others_.unlock();
  }

  // In a forked child, for a lock that was held by another thread than its owner at the fork: the owner, which is not
  // here, was outside, but may have been about to enter.
  void forget_owner() noexcept {
    if (!symmetric_) busy_.store(false, std::memory_order_relaxed);
  }

 private:
  void lock_contended() noexcept;

  static const bool kAsymmetric;
  const bool symmetric_ = !kAsymmetric;  // it is a spin lock; a copy on the cache line that is touched anyway
  std::atomic<bool> busy_{false};        // the owner is inside; symmetric: any thread is
  std::atomic<bool> wanted_{false};      // another thread wants the lock, or has it
  SpinLock others_;
};

// Holds a lock of another thread for a scope.
class ForeignGuard {
 public:
  explicit ForeignGuard(OwnerLock& lock) noexcept : lock_(lock) {
    lock_.ask();
    OwnerLock::pass_barrier();
    lock_.await();
  }
  ForeignGuard(const ForeignGuard&) = delete;
  ForeignGuard& operator=(const ForeignGuard&) = delete;
  ~ForeignGuard() { lock_.release(); }

 private:
  OwnerLock& lock_;
};

}  // namespace mempool
