// What the allocator of a device is made of. Each part knows only the parts above it, but for Pools and CacheSet, which
// know each other; all of them are thread-safe.
//
// The order of locks, in one place. A thread takes them downward only, and skips as many as it likes:
//
//   1. Observers            while one starts or stops
//   2. StreamCollector      while blocks whose streams have caught up are freed
//   3. ThreadRegistry       the one mutex of the process: no thread cache comes or goes
//   4. ThreadCache          of each thread; several of them only under 3
//   5. ArenaSet             the list of arenas and families
//   6. Arena                of each stream; several of them only under 5
//   7. DeferredFrees        the blocks that wait for other streams
//   8. StreamClocks         the list, then each clock
//   9. Ledger               its turn to ask a budget that processes share
//  10. AccountRegistry      the spin lock of all accounts, and of the totals of the Ledger
//  10. History              and after it TraceRecorder
//  11. Decay                the window of demand
//
// Hooks (core/allocator/hooks.h) and listeners (core/observe/block_listener.h) are called with none of them held,
// except for BlockListener::on_completed, which is called with the second held.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "common/options.h"
#include "core/accounts/account_registry.h"
#include "core/accounts/ledger.h"
#include "core/allocator/arena_set.h"
#include "core/allocator/cache_set.h"
#include "core/allocator/pools.h"
#include "core/allocator/reclaimer.h"
#include "core/allocator/stream_collector.h"
#include "core/observe/detours.h"
#include "core/observe/observers.h"
#include "core/physical_memory.h"

namespace mempool {

struct DeviceParts {
  DeviceParts(CachingAllocator& owner_in, std::string device_in, std::unique_ptr<PhysicalMemory> memory_in,
              const Options& options_in)
      : owner(owner_in),
        device(std::move(device_in)),
        options(options_in),
        memory(std::move(memory_in)),
        ledger(accounts),
        observers(detours),
        clocks(memory->stream_events()),
        arenas(owner, *memory, ledger, clocks, options),
        pools(accounts, ledger, arenas, caches),
        caches(ledger, pools, arenas.default_family(), options.thread_cache_bytes),
        collector(accounts, ledger, pools, observers, detours),
        reclaimer(ledger, clocks, arenas, caches, collector, options.decay_ms, memory->granule_bytes()) {}
  DeviceParts(const DeviceParts&) = delete;
  DeviceParts& operator=(const DeviceParts&) = delete;

  // Memory was taken from the backend, or something else is new of which the background thread tells: a forked process
  // has none yet. Called with no lock held.
  void tell_growth() const {
    if (const auto hook = growth_hook.load(std::memory_order_relaxed)) hook(owner);
  }
  // Asks what another allocator of this process holds on the device. Called with no lock held.
  void count_outside() noexcept {
    const auto hook = outside_hook.load(std::memory_order_relaxed);
    if (hook != nullptr) ledger.set_outside(hook(owner));
  }
  // Asks the framework above to free what it keeps for later. Whether a request may fare better now: beside another
  // allocator it always may, as another thread can have freed and counted its memory since the request was tried.
  // Called with no lock held.
  bool relieve() noexcept {
    const auto hook = relief_hook.load(std::memory_order_relaxed);
    const bool is_relieved = hook != nullptr && hook(owner);
    count_outside();
    return is_relieved || outside_hook.load(std::memory_order_relaxed) != nullptr;
  }

  CachingAllocator& owner;
  const std::string device;
  const Options options;
  const std::unique_ptr<PhysicalMemory> memory;
  AccountRegistry accounts;
  Ledger ledger;
  Detours detours;
  Observers observers;
  StreamClocks clocks;
  ArenaSet arenas;
  Pools pools;
  CacheSet caches;
  StreamCollector collector;
  Reclaimer reclaimer;
  std::atomic<void (*)(CachingAllocator&) noexcept> growth_hook{nullptr};
  std::atomic<bool (*)(CachingAllocator&) noexcept> relief_hook{nullptr};
  std::atomic<std::size_t (*)(CachingAllocator&) noexcept> outside_hook{nullptr};
};

}  // namespace mempool
