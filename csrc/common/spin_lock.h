// Locks for critical sections of nanoseconds, which mostly find nobody else there.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

namespace mempool {

// Tells the core that this is a waiting loop.
inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Never sleeps in the kernel. It yields after a short spin, so that a preempted holder on a machine with few cores is
// let run instead of being spun against. Hold it for a few instructions only.
class SpinLock {
 public:
  void lock() noexcept {
    if (!held_.exchange(true, std::memory_order_acquire)) [[likely]]
      return;
    lock_contended();
  }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

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

// For sections that are short as a rule but may make a system call: spins a little, then sleeps.
class AdaptiveMutex {
 public:
  void lock() noexcept {
    constexpr int kSpins = 100;
    for (int spin = 0; spin < kSpins; ++spin) {
      if (mutex_.try_lock()) return;
      cpu_relax();
    }
    mutex_.lock();
  }
  void unlock() noexcept { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

}  // namespace mempool
