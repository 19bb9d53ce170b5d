// torch's interface of a CUDA allocator, as its newest release has it: what a release added is declared here for the
// older ones, and so CudaAllocator is written once. Nothing else of mempool asks for torch's release.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/headeronly/version.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

// Whether torch is 2.`minor` or later. CUDACachingAllocator.h has the types that all of this needs from 2.11 on.
#define MEMPOOL_TORCH_SINCE(minor) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= (minor))

namespace mempool::torch_cuda {

namespace cca = c10::cuda::CUDACachingAllocator;

#if MEMPOOL_TORCH_SINCE(12)
using OomRejectionObserver = cca::OomRejectionObserver;
#else
using OomRejectionObserver = std::function<void(std::int64_t, std::size_t, std::size_t, std::size_t)>;
#endif

// What torch does not declare, it does not call either.
class CudaInterface : public cca::CUDAAllocator {
 public:
#if !MEMPOOL_TORCH_SINCE(12)
  virtual std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) = 0;
  virtual void attachOomRejectionObserver(OomRejectionObserver observer) = 0;
#endif
#if !MEMPOOL_TORCH_SINCE(13)
  virtual c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) = 0;
#endif
#if !MEMPOOL_TORCH_SINCE(14)
  virtual bool supportsUserMetadata() = 0;
  virtual void annotateMemory(const void* address, const std::string& text) = 0;
#endif
};

// The action of an entry in torch's history that annotateMemory() makes.
#if MEMPOOL_TORCH_SINCE(14)
inline constexpr cca::TraceEntry::Action kAnnotate = cca::TraceEntry::ANNOTATE;
#else
inline constexpr cca::TraceEntry::Action kAnnotate = cca::TraceEntry::SNAPSHOT;  // no entry has it: nothing annotates
#endif

// Held bytes by private pool, in torch's statistics; releases without that member leave them out.
#if MEMPOOL_TORCH_SINCE(13)
template <typename Id, typename Statistics>
void set_reserved_by_pool(c10::CachingDeviceAllocator::DeviceStats& out, const Id& id, const Statistics& reserved) {
  out.reserved_bytes_by_private_pools[id] = reserved;
}
#else
template <typename Id, typename Statistics>
void set_reserved_by_pool(c10::CachingDeviceAllocator::DeviceStats&, const Id&, const Statistics&) {}
#endif

}  // namespace mempool::torch_cuda
