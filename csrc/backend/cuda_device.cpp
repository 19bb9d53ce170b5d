#include "backend/cuda_device.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "backend/cuda_driver.h"
#include "backend/cuda_memory.h"
#include "backend/decay_thread.h"
#include "common/errors.h"

namespace mempool {
namespace {

std::array<std::atomic<CachingAllocator*>, kMaxCudaDevices> g_devices{};

const CudaDriver& driver() {
  const CudaDriver* const found = CudaDriver::instance();
  if (found == nullptr) throw ConfigError("cuda: " + CudaDriver::why() + ".");
  return *found;
}

[[noreturn]] void refuse(int ordinal) {
  throw ConfigError("cuda:" + std::to_string(ordinal) +
                    ": the driver has no such device, or it cannot manage virtual memory.");
}

}  // namespace

bool is_cuda_usable(std::string& why_not) {
  why_not = CudaDriver::why();
  return CudaDriver::instance() != nullptr;
}

std::size_t cuda_device_bytes(int ordinal) {
  int device = 0;
  std::size_t bytes = 0;
  if (driver().device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver().device_total(&bytes, device) != CudaDriver::kSuccess) {
    refuse(ordinal);
  }
  return bytes;
}

CachingAllocator& cuda_device(int ordinal, const Options& options) {
  if (ordinal < 0 || ordinal >= kMaxCudaDevices) refuse(ordinal);
  auto& entry = g_devices[static_cast<std::size_t>(ordinal)];
  static std::mutex making;
  const std::lock_guard guard(making);
  if (CachingAllocator* const made = entry.load()) return *made;
  std::unique_ptr<CudaMemory> memory = CudaMemory::make(driver(), ordinal);
  if (memory == nullptr) refuse(ordinal);
  Options own = options;
  // Address space costs nothing on a device: one reservation that holds everything leaves ranges room to grow.
  if (options.segment_bytes == Options{}.segment_bytes) own.segment_bytes = cuda_device_bytes(ordinal);
  auto made = std::make_unique<CachingAllocator>("cuda:" + std::to_string(ordinal), std::move(memory), own);
  made->set_growth_hook(ensure_decay_thread);
  entry.store(made.get());
  return *made.release();
}

CachingAllocator* cuda_device_if_made(int ordinal) noexcept {
  if (ordinal < 0 || ordinal >= kMaxCudaDevices) return nullptr;
  return g_devices[static_cast<std::size_t>(ordinal)].load(std::memory_order_acquire);
}

}  // namespace mempool
