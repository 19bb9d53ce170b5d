#include "backend/decay_thread.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace mempool {
namespace {

std::atomic<bool> g_running{false};

std::int64_t now_ms() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

void* run(void* argument) {
  CachingAllocator& allocator = *static_cast<CachingAllocator*>(argument);
  pthread_setname_np(pthread_self(), "mempool-decay");
  const std::chrono::milliseconds tick(allocator.decay_tick_ms());
  while (true) {
    std::this_thread::sleep_for(tick);
    allocator.decay(now_ms());
    if (allocator.ledger().held() > 0) continue;
    g_running.store(false);
    // Memory that came between the two steps found a thread that was about to end.
    if (allocator.ledger().held() == 0 || g_running.exchange(true)) return nullptr;
  }
}

}  // namespace

void ensure_decay_thread(CachingAllocator& allocator) noexcept {
  if (g_running.load(std::memory_order_relaxed)) return;
  if (allocator.options().decay_ms == kNeverDecays || g_running.exchange(true)) return;
  // Signals belong to the program's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_t thread{};
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, std::size_t{256} << 10);
  if (pthread_create(&thread, &attributes, run, &allocator) != 0) g_running.store(false);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void forget_decay_thread() noexcept { g_running.store(false); }

}  // namespace mempool
