#include "backend/cuda_plain_memory.h"

#include <new>

#include "backend/cuda_memory.h"
#include "common/align.h"
#include "common/expects.h"

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

CudaDriver::Address CudaPlainMemory::allocate(std::size_t bytes) noexcept {
  CudaDriver::Address address = 0;
  return driver_.allocate(&address, bytes) == CudaDriver::kSuccess ? address : 0;
}

void* CudaPlainMemory::reserve(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return nullptr;
  CudaDriver::Address given = allocate(bytes);
  if (given % kGranule != 0) {  // never seen so far, but the driver's documentation does not rule it out
    driver_.free(given);
    given = allocate(bytes + kGranule);
  }
  if (given == 0) return nullptr;
  void* const address = reinterpret_cast<void*>(align_up(given, kGranule));  // NOLINT(performance-no-int-to-ptr)
  try {
    const std::lock_guard guard(mutex_);
    given_.emplace(address, given);
  } catch (const std::bad_alloc&) {
    driver_.free(given);
    return nullptr;
  }
  taken_.fetch_add(bytes);
  return address;
}

// For memory that was never committed. What the driver does not take back stays in `given_`.
void CudaPlainMemory::unreserve(void* address, std::size_t bytes) noexcept { give_back(address, bytes); }

bool CudaPlainMemory::is_given(const void* address) noexcept {
  const std::lock_guard guard(mutex_);
  return given_.contains(address);
}

bool CudaPlainMemory::give_back(void* address, std::size_t bytes) noexcept {
  const std::lock_guard guard(mutex_);
  const CudaScope scope(driver_, context_);
  const auto found = given_.find(address);
  if (found == given_.end() || !scope.is_entered() || driver_.free(found->second) != CudaDriver::kSuccess) return false;
  given_.erase(found);
  taken_.fetch_sub(bytes);
  return true;
}

bool CudaPlainMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(address, bytes) && is_given(address));
  out = {address, bytes, 0};
  CudaMemory::observe(device_, true, address, bytes);
  return true;
}

bool CudaPlainMemory::decommit(const Handle& handle) noexcept {
  if (!give_back(handle.address, handle.bytes)) return false;
  CudaMemory::observe(device_, false, handle.address, handle.bytes);
  return true;
}

std::size_t CudaPlainMemory::available_bytes() noexcept {
  const std::size_t taken = taken_.load(std::memory_order_relaxed);
  return total_ > taken ? total_ - taken : 0;
}

}  // namespace mempool
