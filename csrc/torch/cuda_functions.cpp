#include "torch/cuda_functions.h"

#include <c10/util/Exception.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <cstdlib>
#include <string>

#include "backend/cuda_device.h"
#include "backend/cuda_driver.h"
#include "common/errors.h"
#include "common/options.h"
#include "core/allocator/found_block.h"

namespace mempool::torch_cuda {
namespace {

StreamId id_of(cudaStream_t stream) { return reinterpret_cast<StreamId>(stream); }

// The allocator of a device. The first call makes it with the options of the environment; later ones take no lock.
CachingAllocator& device_at(int device) {
  if (CudaDriver::is_forked()) throw ConfigError(kRefusalInChild);
  if (CachingAllocator* const made = cuda_device_if_made(device)) return *made;
  Options options;
  if (const char* const conf = std::getenv("MEMPOOL_CONF")) {
    const std::size_t whole = cuda_device_bytes(device);
    try {
      parse_conf(options, conf, whole);
    } catch (const ConfigError& error) {
      throw ConfigError("MEMPOOL_CONF: " + std::string(error.what()));
    }
  }
  return cuda_device(device, options);
}

// What torch's stock allocator is made of is protected, and nothing of torch's tells it.
struct Opened : torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator {
  static constexpr auto kAllocate = &Opened::alloc_fn_;
};

}  // namespace

}  // namespace mempool::torch_cuda

using mempool::CachingAllocator;
using mempool::torch_cuda::device_at;
using mempool::torch_cuda::id_of;

// For torch.cuda.memory.CUDAPluggableAllocator(path, "mempool_malloc", "mempool_free"). torch takes a null pointer for
// a block, so these throw.
extern "C" {

[[gnu::visibility("default")]] void* mempool_malloc(ssize_t bytes, int device, cudaStream_t stream) {
  try {
    return device_at(device).allocate(static_cast<std::size_t>(bytes), id_of(stream));
  } catch (const mempool::OutOfMemory& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. ", error.what());
  } catch (const std::exception& error) {
    TORCH_CHECK(false, error.what());
  }
}

[[gnu::visibility("default")]] void mempool_free(void* address, ssize_t, int, cudaStream_t) {
  if (mempool::CudaDriver::is_forked()) return;  // CUDA does not work in a forked child
  CachingAllocator* const owner = mempool::owner_of(address);
  TORCH_CHECK(address == nullptr || (owner != nullptr && owner->deallocate(address)),
              "invalid device pointer: ", address);
}

// For its hooks: set_record_stream_fn, set_reset_fn, set_memory_fraction_fn, set_base_alloc_fn.
[[gnu::visibility("default")]] void mempool_record_stream(void* address, cudaStream_t stream) {
  CachingAllocator* const owner = mempool::owner_of(address);
  TORCH_CHECK(owner != nullptr && owner->add_use(address, id_of(stream)), "invalid device pointer: ", address);
}

[[gnu::visibility("default")]] void mempool_reset() {
  for (int i = 0; i < mempool::kMaxCudaDevices; ++i) {
    if (CachingAllocator* const device = mempool::cuda_device_if_made(i)) device->trim(0);
  }
}

[[gnu::visibility("default")]] void mempool_memory_fraction(double fraction, int device) {
  try {
    const auto total = static_cast<double>(mempool::cuda_device_bytes(device));
    device_at(device).ledger().force_limit(static_cast<std::size_t>(fraction * total));
  } catch (const std::exception& error) {
    TORCH_CHECK(false, error.what());
  }
}

[[gnu::visibility("default")]] void* mempool_base_alloc(void* address, std::size_t* bytes) {
  const mempool::BackedRange range = mempool::backed_range_of(address);
  *bytes = range.bytes;
  return range.address;
}
}

namespace mempool::torch_cuda {

bool is_of_functions(const c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) noexcept {
  using Stock = torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator;
  const auto* const stock = dynamic_cast<const Stock*>(&allocator);
  if (stock == nullptr) return false;
  const auto* const function = (stock->*Opened::kAllocate).target<void* (*)(std::size_t, int, cudaStream_t)>();
  return function != nullptr &&
         reinterpret_cast<const void*>(*function) == reinterpret_cast<const void*>(&mempool_malloc);
}

}  // namespace mempool::torch_cuda
