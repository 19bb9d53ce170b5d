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
  using cca::CUDAAllocator::recordStream;
#if !MEMPOOL_TORCH_SINCE(12)
  virtual std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) = 0;
  virtual void attachOomRejectionObserver(OomRejectionObserver observer) = 0;
#endif
#if !MEMPOOL_TORCH_SINCE(13)
  virtual c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) = 0;
  virtual void markCaptureBegin(c10::DeviceIndex device) = 0;
  virtual void markCaptureEnd(c10::DeviceIndex device) = 0;
#endif
#if !MEMPOOL_TORCH_SINCE(14)
  virtual bool supportsUserMetadata() = 0;
  virtual void annotateMemory(const void* address, const std::string& text) = 0;
#endif
};

// ---- the same calls of an allocator that need not be mempool's, as far as torch declares them

template <typename Allocator>
std::shared_ptr<c10::GatheredContext> context_for_pointer(Allocator& of, const void* address) {
  if constexpr (requires { of.getContextForPointer(address); }) return of.getContextForPointer(address);
  return nullptr;
}
template <typename Allocator>
void attach_rejection_observer(Allocator& to, const OomRejectionObserver& observer) {
  if constexpr (requires { to.attachOomRejectionObserver(observer); }) to.attachOomRejectionObserver(observer);
}
template <typename Allocator>
c10::DataPtr allocate_with_address(Allocator& from, std::size_t bytes, void* address) {
  if constexpr (requires { from.allocateWithAddress(bytes, address); }) return from.allocateWithAddress(bytes, address);
  return {};
}
template <typename Allocator>
void mark_capture(Allocator& of, c10::DeviceIndex device, bool begins) {
  if constexpr (requires { of.markCaptureBegin(device); }) {
    begins ? of.markCaptureBegin(device) : of.markCaptureEnd(device);
  }
}
template <typename Allocator>
bool takes_metadata(Allocator& allocator) {
  if constexpr (requires { allocator.supportsUserMetadata(); }) return allocator.supportsUserMetadata();
  return true;  // one that takes none ignores it without a word
}
template <typename Allocator>
void annotate_memory(Allocator& of, const void* address, const std::string& text) {
  if constexpr (requires { of.annotateMemory(address, text); }) of.annotateMemory(address, text);
}

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
