#include "backend/cuda_registrar.h"

namespace mempool {
namespace {

constexpr int kNotInitialized = 3;  // CUDA_ERROR_NOT_INITIALIZED
// CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP: pinned for every context, and kernels may read it. With
// unified addressing, which every device that torch runs on has, the driver's default is the same.
constexpr unsigned kForAllDevices = 1 | 2;

// The device whose context serves: the calling thread's, else one that has a context already, since a new one takes
// memory of its device; else the first. -1: there is none.
int device_to_use(const CudaDriver& driver) noexcept {
  void* current = nullptr;
  int device = 0;
  if (driver.context_get_current(&current) == CudaDriver::kSuccess && current != nullptr &&
      driver.context_get_device(&device) == CudaDriver::kSuccess) {
    return device;
  }
  int count = 0;
  if (driver.device_count(&count) != CudaDriver::kSuccess) return -1;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    unsigned flags = 0;
    int is_active = 0;
    if (driver.device_get(&device, ordinal) == CudaDriver::kSuccess &&
        driver.context_state(device, &flags, &is_active) == CudaDriver::kSuccess && is_active != 0) {
      return device;
    }
  }
  return count > 0 && driver.device_get(&device, 0) == CudaDriver::kSuccess ? device : -1;
}

}  // namespace

// A primary context, which torch uses too, kept for the life of the process.
void* CudaRegistrar::context(const CudaDriver& driver) noexcept {
  const std::lock_guard guard(mutex_);
  if (context_ != nullptr) return context_;
  const int device = device_to_use(driver);
  if (device < 0 || driver.context_retain(&context_, device) != CudaDriver::kSuccess) context_ = nullptr;
  return context_;
}

int CudaRegistrar::lock(void* address, std::size_t bytes) noexcept {
  const CudaDriver* const driver = CudaDriver::is_forked() ? nullptr : CudaDriver::instance();
  void* const own = driver != nullptr ? context(*driver) : nullptr;
  if (own == nullptr) return kNotInitialized;
  const CudaScope scope(*driver, own);
  return scope.is_entered() ? driver->register_host(address, bytes, kForAllDevices) : kNotInitialized;
}

int CudaRegistrar::unlock(void* address) noexcept {
  const CudaDriver* const driver = CudaDriver::is_forked() ? nullptr : CudaDriver::instance();
  void* const own = driver != nullptr ? context(*driver) : nullptr;
  if (own == nullptr) return kNotInitialized;
  const CudaScope scope(*driver, own);
  return scope.is_entered() ? driver->unregister_host(address) : kNotInitialized;
}

}  // namespace mempool
