#include "backend/decay_thread.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "backend/cuda_driver.h"
#include "backend/metrics_board.h"
#include "backend/outside_watch.h"
#include "backend/process_ledger.h"
#include "common/clock.h"
#include "common/expects.h"

namespace mempool {
namespace {

constexpr std::int64_t kTellMs = 1000;  // between two times that metrics are told

std::atomic<bool> g_running{false};
std::array<std::atomic<CachingAllocator*>, kMaxAllocators> g_allocators{};

// Visits each allocator of the process whose memory decays; they are immortal.
template <typename Action>
void for_each_allocator(Action action) {
  for (const auto& entry : g_allocators) {
    if (CachingAllocator* const allocator = entry.load()) action(*allocator);
  }
}

// A process that shares a ledger goes on: it is asked for its metrics whether it holds anything or not. So does one
// whose limit moves.
bool is_needed() {
  if (process_ledger() != nullptr || is_watching_outside()) return true;
  std::size_t held = 0;
  for_each_allocator([&held](CachingAllocator& allocator) { held += allocator.ledger().held(); });
  return held > 0;
}

void* run(void*) {
  pthread_setname_np(pthread_self(), "mempool-decay");
  std::int64_t told_ms = INT64_MIN / 2;
  while (true) {
    std::int64_t tick = is_watching_outside() ? OutsideWatch::kTickMs : kTellMs;
    for_each_allocator([&tick](CachingAllocator& a) {
      if (a.options().decay_ms != kNeverDecays) tick = std::min(tick, a.decay_tick_ms());
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(tick));
    for_each_allocator([](CachingAllocator& allocator) { allocator.decay(monotonic_ms()); });
    tick_outside_watch(monotonic_ms());
    if (SharedLedger* const ledger = process_ledger(); ledger != nullptr && monotonic_ms() - told_ms >= kTellMs) {
      ledger->touch();
      tell_metrics();
      told_ms = monotonic_ms();
    }
    if (is_needed()) continue;
    g_running.store(false);
    // A growth between the two steps found the thread running and started none: look again.
    if (!is_needed() || g_running.exchange(true)) return nullptr;
  }
}

}  // namespace

void ensure_decay_thread(CachingAllocator& allocator) noexcept {
  if (allocator.options().decay_ms == kNeverDecays && process_ledger() == nullptr && !is_watching_outside()) return;
  MEMPOOL_EXPECTS(allocator.slot() < g_allocators.size());
  g_allocators[allocator.slot()].store(&allocator);
  if (g_running.load(std::memory_order_relaxed) || g_running.exchange(true)) return;
  // The thread blocks all signals: they belong to the program's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_t thread{};
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, std::size_t{256} << 10);
  if (pthread_create(&thread, &attributes, run, nullptr) != 0) g_running.store(false);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ensure_decay_thread_of_driver(CachingAllocator& allocator) noexcept {
  if (!CudaDriver::is_forked()) ensure_decay_thread(allocator);
}

// In a forked child a CUDA device does not work, and threads that do not exist there may hold its locks.
void forget_decay_thread() noexcept {
  g_running.store(false);
  for (auto& entry : g_allocators) {
    CachingAllocator* const allocator = entry.load();
    if (allocator != nullptr && allocator->device() != "cpu") entry.store(nullptr);
  }
}

}  // namespace mempool
