// mempool._torch_cuda: the switch for torch's CUDA allocator, and plain functions for the stock pluggable one.
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#include "backend/cuda_device.h"
#include "backend/cuda_driver.h"
#include "common/errors.h"
#include "common/options.h"
#include "core/allocator/found_block.h"
#include "torch/cuda_allocator.h"

namespace py = pybind11;

namespace {

using mempool::CachingAllocator;

mempool::StreamId id_of(cudaStream_t stream) { return reinterpret_cast<mempool::StreamId>(stream); }

// Made at its first use with the options of the environment. Without a lock from then on.
CachingAllocator& device_at(int device) {
  if (mempool::CudaDriver::is_forked()) {
    throw mempool::ConfigError(
        "mempool: CUDA memory cannot be allocated in a forked process after its parent has used CUDA. Use the 'spawn' "
        "start method (torch.multiprocessing.set_start_method('spawn')).");
  }
  if (CachingAllocator* const made = mempool::cuda_device_if_made(device)) return *made;
  mempool::Options options;
  if (const char* const conf = std::getenv("MEMPOOL_CONF")) {
    const std::size_t whole = mempool::cuda_device_bytes(device);
    try {
      mempool::parse_conf(options, conf, whole);
    } catch (const mempool::ConfigError& error) {
      throw mempool::ConfigError("MEMPOOL_CONF: " + std::string(error.what()));
    }
  }
  return mempool::cuda_device(device, options);
}

}  // namespace

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
  if (mempool::CudaDriver::is_forked()) return;  // nothing of CUDA works here, and nothing is touched
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

PYBIND11_MODULE(_torch_cuda, m) {
  using namespace pybind11::literals;
  m.doc() = "Installs mempool under torch's CUDA tensors. Import torch first.";
  py::register_local_exception<mempool::PoolStateError>(m, "PoolStateError", PyExc_RuntimeError);
  m.def("install", &mempool::torch_cuda::install, "conf"_a,
        "CUDA tensors come from mempool, with the options in `conf` for each device. Idempotent. PoolStateError once "
        "torch "
        "has initialized CUDA.");
  m.def("manages_virtual_memory", &mempool::cuda_manages_virtual_memory, "ordinal"_a,
        "Whether the device, which has an allocator, has memory that moves and sleeps; else plain allocations.");
  m.def("is_installed", [] { return mempool::torch_cuda::installed() != nullptr; });
}
