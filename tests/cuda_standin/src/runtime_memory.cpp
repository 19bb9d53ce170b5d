// The runtime's calls for memory: allocation, copies, fills, pools of stream-ordered allocation, sharing.
#include <cstring>

#include "address_space.h"
#include "calls.h"
#include "devices.h"
#include "streams.h"

using namespace standin;

namespace {

cudaError_t as_runtime(CUresult result) {
  return result == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED ? cudaErrorHostMemoryAlreadyRegistered
                                                             : static_cast<cudaError_t>(result);
}

// A call that a capture forbids.
cudaError_t allowed() { return Streams::instance().check_allowed(); }

cudaError_t on_stream(cudaStream_t handle, Node::Kind kind, std::function<void()> work) {
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
  return remember(Streams::instance().enqueue(*stream, kind, std::move(work)));
}

cudaError_t allocate_device(void** address, std::size_t bytes) {
  if (bytes == 0) {
    *address = nullptr;
    return cudaSuccess;
  }
  return as_runtime(AddressSpace::instance().allocate(current_device(), bytes, address));
}

// CUDA copies host memory that it knows out of one allocation or registration at a time, even where two are neighbours.
bool crosses_a_border(const void* address, std::size_t bytes) {
  const AddressSpace::Place place = AddressSpace::instance().find(address);
  return place.device == -1 && reinterpret_cast<std::uintptr_t>(address) + bytes > place.base + place.bytes;
}

// The memory goes when all work of every stream that was enqueued before is done, as the runtime promises.
cudaError_t free_device(void* address) {
  if (address == nullptr) return cudaSuccess;
  const AddressSpace::Place place = AddressSpace::instance().find(address);
  if (place.device >= 0) Streams::instance().synchronize_device(place.device);
  return as_runtime(AddressSpace::instance().free(address));
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  STANDIN_RUNTIME(cudaMalloc)
  if (const cudaError_t refused = allowed()) return remember(refused);
  const cudaError_t error = allocate_device(address, bytes);
  STANDIN_LOG("cudaMalloc(%zu) = %d, %p", bytes, error, error == cudaSuccess ? *address : nullptr);
  return remember(error);
}

cudaError_t cudaFree(void* address) {
  STANDIN_RUNTIME(cudaFree)
  if (address != nullptr) {
    if (const cudaError_t refused = allowed()) return remember(refused);
  }
  const cudaError_t error = free_device(address);
  STANDIN_LOG("cudaFree(%p) = %d", address, error);
  return remember(error);
}

cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t) {
  STANDIN_RUNTIME(cudaMallocAsync)
  return remember(allocate_device(address, bytes));
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaFreeAsync)
  return on_stream(stream, Node::Kind::empty, [address] { AddressSpace::instance().free(address); });
}

cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  STANDIN_RUNTIME(cudaHostAlloc)
  if (const cudaError_t refused = allowed()) return remember(refused);
  return remember(as_runtime(AddressSpace::instance().allocate_host(bytes, address)));
}

cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  STANDIN_RUNTIME(cudaMallocHost)
  if (const cudaError_t refused = allowed()) return remember(refused);
  return remember(as_runtime(AddressSpace::instance().allocate_host(bytes, address)));
}

cudaError_t cudaFreeHost(void* address) {
  STANDIN_RUNTIME(cudaFreeHost)
  if (address == nullptr) return cudaSuccess;
  return remember(as_runtime(AddressSpace::instance().free(address)));
}

cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned) {
  STANDIN_RUNTIME(cudaHostRegister)
  return remember(as_runtime(AddressSpace::instance().register_host(address, bytes)));
}

cudaError_t cudaHostUnregister(void* address) {
  STANDIN_RUNTIME(cudaHostUnregister)
  const cudaError_t error = as_runtime(AddressSpace::instance().free(address));
  return remember(error == cudaErrorInvalidValue ? cudaErrorHostMemoryNotRegistered : error);
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  STANDIN_RUNTIME(cudaMemGetInfo)
  const Memory& memory = Devices::instance().memory(current_device());
  *total = memory.capacity;
  *free = memory.capacity > memory.used() ? memory.capacity - memory.used() : 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  STANDIN_RUNTIME(cudaPointerGetAttributes)
  const AddressSpace::Place place = AddressSpace::instance().find(address);
  *attributes = {};
  attributes->device = place.device >= 0 ? place.device : -1;
  attributes->type = place.device >= 0    ? cudaMemoryTypeDevice
                     : place.device == -1 ? cudaMemoryTypeHost
                                          : cudaMemoryTypeUnregistered;
  attributes->devicePointer = place.device >= -1 ? const_cast<void*>(address) : nullptr;
  attributes->hostPointer = place.device < 0 ? const_cast<void*>(address) : nullptr;
  return cudaSuccess;
}

// ---- copies and fills ----

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaMemcpyAsync)
  if (crosses_a_border(to, bytes) || crosses_a_border(from, bytes)) return remember(cudaErrorInvalidValue);
  return on_stream(stream, Node::Kind::copy, [=] { std::memmove(to, from, bytes); });
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaMemcpyPeerAsync)
  return on_stream(stream, Node::Kind::copy, [=] { std::memmove(to, from, bytes); });
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaMemcpy2DAsync)
  return on_stream(stream, Node::Kind::copy, [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    }
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  STANDIN_RUNTIME(cudaMemcpy)
  if (const cudaError_t refused = allowed()) return remember(refused);
  if (crosses_a_border(to, bytes) || crosses_a_border(from, bytes)) return remember(cudaErrorInvalidValue);
  Streams::instance().synchronize_device(current_device());
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaMemsetAsync)
  return on_stream(stream, Node::Kind::fill, [=] { std::memset(to, value, bytes); });
}

cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  STANDIN_RUNTIME(cudaMemset)
  if (const cudaError_t refused = allowed()) return remember(refused);
  Streams::instance().synchronize_device(current_device());
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyToSymbol(const void*, const void*, std::size_t, std::size_t, cudaMemcpyKind) {
  STANDIN_RUNTIME(cudaMemcpyToSymbol)
  return cudaSuccess;
}

// ---- pools of stream-ordered allocation: one, that keeps nothing ----

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  STANDIN_RUNTIME(cudaDeviceGetDefaultMemPool)
  *pool = reinterpret_cast<cudaMemPool_t>(static_cast<std::uintptr_t>(device) + 1);
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  STANDIN_RUNTIME(cudaMemPoolSetAttribute)
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  STANDIN_RUNTIME(cudaMemPoolGetAttribute)
  std::memset(value, 0, sizeof(std::uint64_t));
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) {
  STANDIN_RUNTIME(cudaMemPoolTrimTo)
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, std::size_t) {
  STANDIN_RUNTIME(cudaMemPoolSetAccess)
  return cudaSuccess;
}

// ---- sharing between processes: what the stand-in cannot show ----

}  // extern "C"
