#include "backend/pinned_device.h"

#include <atomic>
#include <memory>
#include <mutex>

#include "backend/cuda_all_events.h"
#include "backend/cuda_registrar.h"
#include "backend/decay_thread.h"
#include "backend/fork_safety.h"
#include "common/expects.h"

namespace mempool {
namespace {

std::atomic<CachingAllocator*> g_pinned{nullptr};
PinnedMemory* g_memory = nullptr;  // set before it

}  // namespace

CachingAllocator& pinned_device(const Options& options) {
  const std::lock_guard guard(device_making());
  if (CachingAllocator* const made = g_pinned.load()) return *made;
  auto memory = std::make_unique<PinnedMemory>(std::make_unique<CudaRegistrar>(), std::make_unique<CudaAllEvents>(),
                                               options.huge_pages);
  PinnedMemory* const backend = memory.get();
  auto made = std::make_unique<CachingAllocator>("pinned", std::move(memory), options);
  survive_fork(*made);
  made->set_growth_hook(ensure_decay_thread_of_driver);
  g_memory = backend;
  g_pinned.store(made.get());
  return *made.release();
}

CachingAllocator* pinned_device_if_made() noexcept { return g_pinned.load(); }

PinnedMemory& pinned_memory() noexcept {
  MEMPOOL_EXPECTS(g_pinned.load() != nullptr);
  return *g_memory;
}

StreamId pinned_stream(int ordinal, std::uint64_t stream) noexcept { return CudaAllEvents::id_of(ordinal, stream); }

void share_pinned_device(SharedLimit limit) {
  if (CachingAllocator* const device = pinned_device_if_made()) share(*device, "pinned", limit);
}

}  // namespace mempool
