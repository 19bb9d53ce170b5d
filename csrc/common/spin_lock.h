// A lock for critical sections of a few nanoseconds. It yields after a short spin, so that a preempted holder on a
// machine with few cores is let run instead of being spun against.
#pragma once

#include <atomic>
#include <thread>

namespace mempool {

class SpinLock {
 public:
  void lock() noexcept {
    if (!held_.exchange(true, std::memory_order_acquire)) [[likely]]
      return;
    lock_contended();
  }
  bool try_lock() noexcept { return !held_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  void lock_contended() noexcept {
    constexpr int kSpins = 64;
    for (int spin = 0;; ++spin) {
      if (!held_.load(std::memory_order_relaxed) && !held_.exchange(true, std::memory_order_acquire)) return;
      if (spin >= kSpins) std::this_thread::yield();
    }
  }

  std::atomic<bool> held_{false};
};

}  // namespace mempool
