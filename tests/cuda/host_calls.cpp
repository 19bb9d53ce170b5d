// Calls of torch's host allocator that Python does not reach.
#include <ATen/core/CachingHostAllocator.h>

#include <cstddef>
#include <cstdint>
#include <map>

namespace {

at::HostAllocator& allocator() { return *at::getHostAllocator(at::kCUDA); }

std::map<void*, c10::DataPtr>& blocks() {
  static auto* const all = new std::map<void*, c10::DataPtr>;
  return *all;
}

}  // namespace

extern "C" {

void* host_allocate(std::size_t bytes, void** context) {
  c10::DataPtr block = allocator().allocate(bytes);
  void* const address = block.get();
  *context = block.get_context();
  blocks()[address] = std::move(block);
  return address;
}
void host_free(void* address) { blocks().erase(address); }
int host_record(void* address, void* context, std::int64_t stream, int device) {
  const auto index = static_cast<c10::DeviceIndex>(device);
  return allocator().record_event(address, context, c10::Stream::unpack3(stream, index, at::kCUDA)) ? 1 : 0;
}
void host_empty_cache() { allocator().empty_cache(); }
}
