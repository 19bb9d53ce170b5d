// Locks for critical sections of nanoseconds, which are rarely contended.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "common/expects.h"

namespace mempool {

// Tells the core that this is a waiting loop.
inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// A lock that never sleeps in the kernel. It yields after a short spin, so that on a machine with few cores a preempted
// holder may run. Hold it for a few instructions only.
class SpinLock {
 public:
  void lock() noexcept {
    if (!held_.exchange(true, std::memory_order_acquire)) [[likely]]
      return;
    lock_contended();
  }
  void unlock() noexcept {
    MEMPOOL_EXPECTS(held_.load(std::memory_order_relaxed));
    held_.store(false, std::memory_order_release);
  }

 private:
  void lock_contended() noexcept {
    constexpr int kSpins = 100;
    for (int spin = 0;; ++spin) {
      if (!held_.load(std::memory_order_relaxed) && !held_.exchange(true, std::memory_order_acquire)) return;
      spin < kSpins ? cpu_relax() : std::this_thread::yield();
    }
  }

  std::atomic<bool> held_{false};
};

// A mutex for sections that are short as a rule but may make a system call: it spins a little, then sleeps.
class AdaptiveMutex {
 public:
  void lock() noexcept {
    int expected = kFree;
    if (!state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire)) [[unlikely]]
      lock_contended();
  }
  bool try_lock() noexcept {
    int expected = kFree;
    return state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire);
  }
  void unlock() noexcept {
    const int before = state_.exchange(kFree, std::memory_order_release);
    MEMPOOL_EXPECTS(before != kFree);
    if (before == kAwaited) [[unlikely]]
      state_.notify_one();
  }

 private:
  static constexpr int kFree = 0;
  static constexpr int kHeld = 1;
  static constexpr int kAwaited = 2;  // held, and a thread may sleep until it is free

  void lock_contended() noexcept {
    constexpr int kSpins = 100;
    for (int spin = 0; spin < kSpins; ++spin) {
      int expected = kFree;
      if (state_.load(std::memory_order_relaxed) == kFree &&
          state_.compare_exchange_weak(expected, kHeld, std::memory_order_acquire)) {
        return;
      }
      cpu_relax();
    }
    while (state_.exchange(kAwaited, std::memory_order_acquire) != kFree) {
      state_.wait(kAwaited, std::memory_order_relaxed);
    }
  }

  std::atomic<int> state_{kFree};
};

// An AdaptiveMutex that counts how often it was taken, and how often a thread waited for it.
class CountedMutex {
 public:
  struct Counts {
    std::uint64_t taken = 0;
    std::uint64_t waits = 0;

    void add(const Counts& other) {
      taken += other.taken;
      waits += other.waits;
    }
  };

  void lock() noexcept {
    if (try_lock()) return;
    mutex_.lock();
    ++counts_.taken;
    ++counts_.waits;
  }
  bool try_lock() noexcept {
    const bool is_taken = mutex_.try_lock();
    if (is_taken) ++counts_.taken;
    return is_taken;
  }
  void unlock() noexcept { mutex_.unlock(); }
  // The same mutex for who is not to be counted.
  AdaptiveMutex& uncounted() noexcept { return mutex_; }
  const Counts& counts() const noexcept { return counts_; }  // expects that it is held

 private:
  AdaptiveMutex mutex_;
  Counts counts_;  // the mutex guards it
};

}  // namespace mempool
