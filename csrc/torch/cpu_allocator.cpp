#include "torch/cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>

#include "common/expects.h"
#include "core/allocator/found_block.h"

namespace mempool::torch_cpu {
namespace {

CachingAllocator* g_device = nullptr;  // set once, before the first allocation
c10::Allocator* g_previous = nullptr;  // likewise
std::atomic<bool> g_enabled{false};
std::atomic<bool> g_has_reported{false};  // the reporter was told of a block, and has to be told of frees

// Whether the profiler of this thread or the log records allocations; the reporter asks the same first.
bool is_reported() noexcept { return c10::memoryProfilingEnabled() || FLAGS_caffe2_report_cpu_memory_usage; }

void report(void* address, std::size_t bytes) {
  g_has_reported.store(true, std::memory_order_relaxed);
  c10::profiledCPUMemoryReporter().New(address, bytes);
}

// The deleter of all our blocks, which raw_deallocate calls with other pointers as well.
void deleter(void* address) {
  if (g_has_reported.load(std::memory_order_relaxed) && is_reported() && block_bytes(address) != 0) [[unlikely]]
    c10::profiledCPUMemoryReporter().Delete(address);
  if (g_device->deallocate(address)) [[likely]]
    return;
  // A pointer that is not ours was made by the allocator before us (raw_allocate ahead of enable(), or while disabled),
  // and goes back to it. A pointer into our memory can only be a block that is free already.
  const c10::DeleterFnPtr previous = g_previous->raw_deleter();
  if (previous != nullptr && block_bytes(address) == 0) previous(address);
}

void* allocate_block(std::size_t bytes) {
  try {
    return g_device->allocate(bytes);
  } catch (const std::bad_alloc& error) {
    c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
  } catch (const PoolStateError& error) {
    TORCH_CHECK(false, error.what());
  }
}

class Adapter final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (!g_enabled.load(std::memory_order_relaxed)) return g_previous->allocate(bytes);
    void* const address = allocate_block(bytes);
    if (address != nullptr && is_reported()) [[unlikely]]
      report(address, bytes);
    return {address, address, &deleter, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &deleter; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

void enable(CachingAllocator& device) {
  MEMPOOL_EXPECTS(g_device == nullptr || g_device == &device);
  static std::mutex installing;
  const std::lock_guard guard(installing);
  if (g_device == nullptr) {
    static Adapter* const adapter = new Adapter;  // immortal: tensors may outlive static destruction
    g_device = &device;
    g_previous = c10::GetAllocator(c10::DeviceType::CPU);
    g_enabled.store(true);
    c10::SetAllocator(c10::DeviceType::CPU, adapter, /*priority=*/255);
    return;
  }
  g_enabled.store(true);
}

void disable() noexcept { g_enabled.store(false); }

bool is_enabled() noexcept { return g_enabled.load(); }

}  // namespace mempool::torch_cpu
