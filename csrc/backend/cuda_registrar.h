// Page-locks host memory by CUDA's driver, for all of its devices.
#pragma once

#include <mutex>

#include "backend/cuda_driver.h"
#include "backend/pinned_memory.h"

namespace mempool {

// The driver is asked for nothing before the first call: children that are forked until then can use CUDA.
class CudaRegistrar final : public HostRegistrar {
 public:
  int lock(void* address, std::size_t bytes) noexcept override;
  int unlock(void* address) noexcept override;
  bool is_cut_off() const noexcept override { return CudaDriver::is_forked(); }

 private:
  void* context(const CudaDriver& driver) noexcept;

  std::mutex mutex_;  // guards the rest
  void* context_ = nullptr;
};

}  // namespace mempool
