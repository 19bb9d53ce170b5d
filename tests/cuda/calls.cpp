// Entry points of torch's CUDA allocator that Python does not reach. A release that lacks one does without it.
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/headeronly/version.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace cca = c10::cuda::CUDACachingAllocator;

namespace {

std::atomic<int> g_entries[16];

// A block that allocate_with_address() made.
c10::DataPtr& kept() {
  static auto* const block = new c10::DataPtr;
  return *block;
}

}  // namespace

extern "C" {

std::size_t cache_info(int device) {
  std::size_t largest = 0;
  cca::cacheInfo(static_cast<c10::DeviceIndex>(device), &largest);
  return largest;
}

// Bytes of all segments, by the allocator's own list of them.
std::size_t expandable_bytes(int device) {
  std::size_t sum = 0;
  for (const auto& each : cca::getExpandableSegmentSizes(static_cast<c10::DeviceIndex>(device))) sum += each.total_size;
  return sum;
}

std::size_t base_allocation(void* address, void** base) {
  std::size_t bytes = 0;
  *base = cca::getBaseAllocation(address, &bytes);
  return bytes;
}

// From now on entries are counted by kind.
void attach_tracker() {
  cca::attachAllocatorTraceTracker([](const cca::TraceEntry& entry) { ++g_entries[entry.action_]; });
}
int tracked(int action) { return g_entries[action].load(); }

void attach_rejection_observer() {
#if TORCH_VERSION_MINOR >= 12
  cca::attachOomRejectionObserver([](std::int64_t, std::size_t, std::size_t, std::size_t) {});
#endif
}

#if TORCH_VERSION_MINOR >= 13
// 0: refused with a c10::Error.
int allocate_with_address(std::size_t bytes, void* address) {
  try {
    kept() = cca::allocateWithAddress(bytes, address);
    return kept().get() == address ? 1 : 2;
  } catch (const c10::Error&) {
    return 0;
  }
}
#endif
void free_kept() { kept().clear(); }
}
