#include "backend/cpu_device.h"

#include <atomic>
#include <memory>
#include <mutex>

#include "backend/decay_thread.h"
#include "backend/fork_safety.h"
#include "backend/host_memory.h"

namespace mempool {
namespace {

std::atomic<CachingAllocator*> g_cpu{nullptr};

}  // namespace

CachingAllocator& cpu_device(const Options& options) {
  const std::lock_guard guard(device_making());
  if (CachingAllocator* made = g_cpu.load()) return *made;
  auto made = std::make_unique<CachingAllocator>("cpu", std::make_unique<HostMemory>(options.huge_pages), options);
  survive_fork(*made);
  g_cpu.store(made.get());
  made->set_growth_hook(ensure_decay_thread);
  return *made.release();
}

CachingAllocator* cpu_device_if_made() noexcept { return g_cpu.load(); }

}  // namespace mempool
