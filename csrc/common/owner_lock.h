// A lock that one thread, its owner, takes all the time and others hardly ever.
//
// The owner pays two plain stores and a load. Whoever else wants it says so and then makes every thread of the process
// pass a memory barrier (Linux: membarrier): after that the owner has either seen the wish, or been seen inside.
// Where the system has no such barrier, and for ThreadSanitizer, which cannot follow it, it is a spin lock.
// Source of the idea: D. Dice et al., "Quickly Reacquirable Locks", 2003; the barrier: membarrier(2).
#pragma once

#include <atomic>

#include "common/spin_lock.h"

namespace mempool {

class OwnerLock {
 public:
  // For the owner.
  void lock() noexcept {
    if (!asymmetric_) {
      others_.lock();
      return;
    }
    busy_.store(true, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (wanted_.load(std::memory_order_acquire)) [[unlikely]]
      lock_contended();
  }
  void unlock() noexcept {
    if (!asymmetric_) {
      others_.unlock();
      return;
    }
    busy_.store(false, std::memory_order_release);
  }

  // For everybody, the owner too unless it is inside. In three steps, so that one barrier serves many locks:
  // ask() each, pass_barrier() once, await() each.
  void ask() noexcept {
    others_.lock();
    if (asymmetric_) wanted_.store(true, std::memory_order_seq_cst);
  }
  static void pass_barrier() noexcept;
  void await() noexcept;
  void release() noexcept {
    if (asymmetric_) wanted_.store(false, std::memory_order_release);
    others_.unlock();
  }

  // In a forked child, for a lock that was held by another thread than its owner at the fork: the owner, which is not
  // here, was outside, but may have been about to enter.
  void forget_owner() noexcept { busy_.store(false, std::memory_order_relaxed); }

  // Whether the cheap way is in use.
  static bool is_asymmetric() noexcept { return asymmetric_; }

 private:
  void lock_contended() noexcept;

  static const bool asymmetric_;
  std::atomic<bool> busy_{false};
  std::atomic<bool> wanted_{false};
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
