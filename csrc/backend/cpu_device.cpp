#include "backend/cpu_device.h"

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "backend/decay_thread.h"
#include "backend/host_memory.h"

namespace mempool {
namespace {

std::atomic<CachingAllocator*> g_cpu{nullptr};

void before_fork() { g_cpu.load()->prepare_fork(); }
void after_fork_in_parent() { g_cpu.load()->after_fork(false); }
void after_fork_in_child() {
  forget_decay_thread();
  g_cpu.load()->after_fork(true);
  ThreadRegistry::instance().adopt_orphans(g_cpu.load()->slot());
}

}  // namespace

CachingAllocator& cpu_device(const Options& options) {
  static std::mutex making;
  const std::lock_guard guard(making);
  if (CachingAllocator* made = g_cpu.load()) return *made;
  auto made = std::make_unique<CachingAllocator>("cpu", std::make_unique<HostMemory>(options.huge_pages), options);
  g_cpu.store(made.get());
  if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
    g_cpu.store(nullptr);
    throw std::bad_alloc();
  }
  made->set_growth_hook(ensure_decay_thread);
  return *made.release();
}

CachingAllocator* cpu_device_if_made() noexcept { return g_cpu.load(); }

}  // namespace mempool
