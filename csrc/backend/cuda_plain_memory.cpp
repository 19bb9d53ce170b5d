#include "backend/cuda_plain_memory.h"

#include "backend/cuda_memory.h"

namespace mempool {

std::unique_ptr<CudaPlainMemory> CudaPlainMemory::make(const CudaDriver& driver, int ordinal) {
  int device = 0;
  void* context = nullptr;
  std::size_t total = 0;
  if (driver.device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver.device_total(&total, device) != CudaDriver::kSuccess ||
      driver.context_retain(&context, device) != CudaDriver::kSuccess) {
    return nullptr;
  }
  return std::unique_ptr<CudaPlainMemory>(new CudaPlainMemory(driver, device, context, total));
}

CudaPlainMemory::CudaPlainMemory(const CudaDriver& driver, int device, void* context, std::size_t total)
    : driver_(driver), device_(device), context_(context), total_(total), events_(driver, context) {}

void* CudaPlainMemory::ask(std::size_t bytes) noexcept {
  const CudaScope scope(driver_, context_);
  CudaDriver::Address given = 0;
  if (!scope.is_entered() || driver_.allocate(&given, bytes) != CudaDriver::kSuccess) return nullptr;
  taken_.fetch_add(bytes);
  return reinterpret_cast<void*>(given);  // NOLINT(performance-no-int-to-ptr)
}

bool CudaPlainMemory::give_back(void* address, std::size_t bytes) noexcept {
  const CudaScope scope(driver_, context_);
  const auto given = reinterpret_cast<CudaDriver::Address>(address);
  if (!scope.is_entered() || driver_.free(given) != CudaDriver::kSuccess) return false;
  taken_.fetch_sub(bytes);
  return true;
}

void CudaPlainMemory::observe(bool begins, void* address, std::size_t bytes) noexcept {
  CudaMemory::observe(device_, begins, address, bytes);
}

std::size_t CudaPlainMemory::available_bytes() noexcept {
  const std::size_t taken = taken_.load(std::memory_order_relaxed);
  return total_ > taken ? total_ - taken : 0;
}

}  // namespace mempool
