#include "common/owner_lock.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#if __has_include(<linux/membarrier.h>)
#include <linux/membarrier.h>
#endif

namespace mempool {
namespace {

#if defined(MEMBARRIER_CMD_PRIVATE_EXPEDITED) || __has_include(<linux/membarrier.h>)
bool membarrier(int command) noexcept { return syscall(SYS_membarrier, command, 0, 0) == 0; }
bool make_barrier() noexcept {
  // The expedited barrier needs a registration, which a forked child may have lost. The global one is slow, and needs
  // none.
  return membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) ||
         (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) ||
         membarrier(MEMBARRIER_CMD_GLOBAL);
}
#else
bool make_barrier() noexcept { return false; }
#endif

#if defined(__SANITIZE_THREAD__)
constexpr bool kFollowable = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kFollowable = true;
#else
constexpr bool kFollowable = false;
#endif
#else
constexpr bool kFollowable = false;
#endif

// Calls `done` until it returns true.
template <typename Done>
void spin(Done done) noexcept {
  constexpr int kSpins = 100;
  for (int round = 0; !done(); ++round) {
    round < kSpins ? cpu_relax() : std::this_thread::yield();
  }
}

}  // namespace

const bool OwnerLock::kAsymmetric = !kFollowable && make_barrier();

void OwnerLock::pass_barrier() noexcept {
  if (!kAsymmetric || make_barrier()) return;
  // A sandbox forbids the call by now. No processor keeps a store in its buffer for as long as this.
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void OwnerLock::await() noexcept {
  spin([this] {
    return symmetric_ ? !busy_.exchange(true, std::memory_order_acquire) : !busy_.load(std::memory_order_acquire);
  });
}

void OwnerLock::lock_contended() noexcept {
  if (symmetric_) {
    spin([this] { return try_lock(); });
    return;
  }
  do {
    // The thread that set `wanted_` holds `others_` until it has released the lock.
    others_.lock();
    others_.unlock();
  } while (!try_lock());
}

}  // namespace mempool
