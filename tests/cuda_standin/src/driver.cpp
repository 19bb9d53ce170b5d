// The driver's calls: virtual memory management, contexts, and how the runtime hands out their addresses.
#include <dlfcn.h>

#include <cstring>

#include "address_space.h"
#include "calls.h"
#include "devices.h"
#include "streams.h"

using namespace standin;

namespace {

// What a capture forbids fails as the driver's own error.
CUresult allowed() { return static_cast<CUresult>(Streams::instance().check_allowed()); }

CUresult on_stream(CUstream handle, std::function<void()> work) {
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return static_cast<CUresult>(Streams::instance().enqueue(*stream, Node::Kind::fill, std::move(work)));
}

// Stands for every driver call that torch may look up and the stand-in does not have.
CUresult not_supported() { return CUDA_ERROR_NOT_SUPPORTED; }

// Newer versions of a call carry a suffix that callers do not write.
void* find_entry(const char* symbol) {
  const std::string name = symbol;
  for (const char* const suffix : {"_v2", ""}) {
    if (void* const found = dlsym(RTLD_DEFAULT, (name + suffix).c_str())) return found;
  }
  return nullptr;
}

}  // namespace

namespace {

// The runtime remembers the errors of its own calls alone.
template <typename Call>
CUresult by_the_runtime(Call call) {
  const cudaError_t before = standin::last_error(true);
  const cudaError_t result = call();
  standin::last_error(true);
  standin::remember(before);
  return static_cast<CUresult>(result);
}

}  // namespace

extern "C" {

// ---- virtual memory management ----

CUresult cuMemGetAllocationGranularity(std::size_t* granularity, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  STANDIN_DRIVER(cuMemGetAllocationGranularity)
  *granularity = kGranularity;
  return CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr* address, std::size_t bytes, std::size_t alignment, CUdeviceptr,
                             unsigned long long) {
  STANDIN_DRIVER(cuMemAddressReserve)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = AddressSpace::instance().reserve(bytes, alignment, address);
  STANDIN_LOG("cuMemAddressReserve(%zu) = %d, %#llx", bytes, error, error == CUDA_SUCCESS ? *address : 0);
  return error;
}
CUresult cuMemAddressFree(CUdeviceptr address, std::size_t bytes) {
  STANDIN_DRIVER(cuMemAddressFree)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = AddressSpace::instance().unreserve(address, bytes);
  STANDIN_LOG("cuMemAddressFree(%#llx, %zu) = %d", address, bytes, error);
  return error;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, std::size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long) {
  STANDIN_DRIVER(cuMemCreate)
  if (const CUresult refused = allowed()) return refused;
  if (properties->type != CU_MEM_ALLOCATION_TYPE_PINNED || !Devices::instance().exists(properties->location.id)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool is_shareable = (properties->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0;
  const CUresult error = AddressSpace::instance().create(properties->location.id, bytes, is_shareable, handle);
  STANDIN_LOG("cuMemCreate(%zu, device %d) = %d, %llu", bytes, properties->location.id, error,
              error == CUDA_SUCCESS ? *handle : 0);
  return error;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  STANDIN_DRIVER(cuMemRelease)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = AddressSpace::instance().release(handle);
  STANDIN_LOG("cuMemRelease(%llu) = %d", handle, error);
  return error;
}
CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
  STANDIN_DRIVER(cuMemRetainAllocationHandle)
  return AddressSpace::instance().retain(reinterpret_cast<CUdeviceptr>(address), handle);
}
CUresult cuMemMap(CUdeviceptr address, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  STANDIN_DRIVER(cuMemMap)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = offset != 0 ? CUDA_ERROR_INVALID_VALUE : AddressSpace::instance().map(address, bytes, handle);
  STANDIN_LOG("cuMemMap(%#llx, %zu, %llu) = %d", address, bytes, handle, error);
  return error;
}
// The driver does not wait for work that uses the range: neither does this, so that a test sees what reads it later.
CUresult cuMemUnmap(CUdeviceptr address, std::size_t bytes) {
  STANDIN_DRIVER(cuMemUnmap)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = AddressSpace::instance().unmap(address, bytes);
  STANDIN_LOG("cuMemUnmap(%#llx, %zu) = %d", address, bytes, error);
  return error;
}
CUresult cuMemSetAccess(CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* access, std::size_t count) {
  STANDIN_DRIVER(cuMemSetAccess)
  if (const CUresult refused = allowed()) return refused;
  bool readable = false;
  bool writable = false;
  for (std::size_t i = 0; i < count; ++i) {
    readable = readable || (access[i].flags & CU_MEM_ACCESS_FLAGS_PROT_READ) != 0;
    writable = writable || access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  const CUresult error = AddressSpace::instance().set_access(address, bytes, readable, writable);
  STANDIN_LOG("cuMemSetAccess(%#llx, %zu) = %d", address, bytes, error);
  return error;
}
CUresult cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long) {
  STANDIN_DRIVER(cuMemExportToShareableHandle)
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  return AddressSpace::instance().export_handle(handle, static_cast<int*>(shareable));
}
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shareable,
                                        CUmemAllocationHandleType type) {
  STANDIN_DRIVER(cuMemImportFromShareableHandle)
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  return AddressSpace::instance().import_handle(static_cast<int>(reinterpret_cast<std::intptr_t>(shareable)), handle);
}
CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, std::size_t count, CUstream stream) {
  STANDIN_DRIVER(cuMemsetD32Async)
  return on_stream(stream, [=] {
    auto* const words = reinterpret_cast<unsigned*>(address);
    for (std::size_t i = 0; i < count; ++i) words[i] = value;
  });
}
CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  STANDIN_DRIVER(cuStreamWriteValue32)
  return on_stream(stream, [=] { *reinterpret_cast<cuuint32_t*>(address) = value; });
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, std::size_t bytes) {
  STANDIN_DRIVER(cuMemcpyDtoH)
  return static_cast<CUresult>(cudaMemcpy(to, reinterpret_cast<void*>(from), bytes, cudaMemcpyDeviceToHost));
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
  STANDIN_DRIVER(cuMemcpyHtoD)
  return static_cast<CUresult>(cudaMemcpy(reinterpret_cast<void*>(to), from, bytes, cudaMemcpyHostToDevice));
}
CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  STANDIN_DRIVER(cuMemAlloc)
  return static_cast<CUresult>(cudaMalloc(reinterpret_cast<void**>(address), bytes));
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  STANDIN_DRIVER(cuMemFree)
  return static_cast<CUresult>(cudaFree(reinterpret_cast<void*>(address)));
}
CUresult cuMemAllocHost_v2(void** address, std::size_t bytes) {
  STANDIN_DRIVER(cuMemAllocHost)
  return static_cast<CUresult>(cudaHostAlloc(address, bytes, 0));
}
CUresult cuMemFreeHost(void* address) {
  STANDIN_DRIVER(cuMemFreeHost)
  return static_cast<CUresult>(cudaFreeHost(address));
}
CUresult cuMemHostRegister_v2(void* address, std::size_t bytes, unsigned flags) {
  STANDIN_DRIVER(cuMemHostRegister)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = by_the_runtime([&] { return cudaHostRegister(address, bytes, flags); });
  STANDIN_LOG("cuMemHostRegister(%p, %zu) = %d", address, bytes, error);
  return error;
}
CUresult cuMemHostUnregister(void* address) {
  STANDIN_DRIVER(cuMemHostUnregister)
  if (const CUresult refused = allowed()) return refused;
  const CUresult error = by_the_runtime([&] { return cudaHostUnregister(address); });
  STANDIN_LOG("cuMemHostUnregister(%p) = %d", address, error);
  return error;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  STANDIN_DRIVER(cuThreadExchangeStreamCaptureMode)
  *mode =
      static_cast<CUstreamCaptureMode>(Streams::instance().exchange_mode(static_cast<cudaStreamCaptureMode>(*mode)));
  return CUDA_SUCCESS;
}

// ---- streams and events: what the runtime has ----

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  STANDIN_DRIVER(cuStreamIsCapturing)
  return by_the_runtime(
      [&] { return cudaStreamIsCapturing(stream, reinterpret_cast<cudaStreamCaptureStatus*>(status)); });
}
CUresult cuEventCreate(CUevent* event, unsigned flags) {
  STANDIN_DRIVER(cuEventCreate)
  return by_the_runtime([&] { return cudaEventCreateWithFlags(event, flags); });
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  STANDIN_DRIVER(cuEventRecord)
  return by_the_runtime([&] { return cudaEventRecord(event, stream); });
}
CUresult cuEventQuery(CUevent event) {
  STANDIN_DRIVER(cuEventQuery)
  return by_the_runtime([&] { return cudaEventQuery(event); });
}
CUresult cuEventSynchronize(CUevent event) {
  STANDIN_DRIVER(cuEventSynchronize)
  return by_the_runtime([&] { return cudaEventSynchronize(event); });
}
CUresult cuEventDestroy_v2(CUevent event) {
  STANDIN_DRIVER(cuEventDestroy)
  return by_the_runtime([&] { return cudaEventDestroy(event); });
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr address) {
  STANDIN_DRIVER(cuPointerGetAttribute)
  const AddressSpace::Place place = AddressSpace::instance().find(reinterpret_cast<void*>(address));
  if (place.device == -2) return CUDA_ERROR_INVALID_VALUE;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(value) = place.device;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<CUdeviceptr*>(value) = place.base;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<std::size_t*>(value) = place.bytes;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// ---- devices and contexts ----

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  STANDIN_DRIVER(cuDeviceGet)
  if (!Devices::instance().exists(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  STANDIN_DRIVER(cuDeviceGetCount)
  *count = Devices::instance().count();
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  STANDIN_DRIVER(cuDeviceGetAttribute)
  if (!Devices::instance().exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *value = Devices::instance().manages_virtual_memory() &&
           (which == CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED ||
            which == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
  STANDIN_DRIVER(cuDeviceTotalMem)
  if (!Devices::instance().exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = Devices::instance().memory(device).capacity;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  STANDIN_DRIVER(cuDeviceGetUuid)
  if (!Devices::instance().exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  std::memset(uuid->bytes, device + 1, sizeof uuid->bytes);  // as cudaGetDeviceProperties says
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* is_active) {
  STANDIN_DRIVER(cuDevicePrimaryCtxGetState)
  *flags = 0;
  *is_active = 1;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  STANDIN_DRIVER(cuDevicePrimaryCtxRetain)
  *context = reinterpret_cast<CUcontext>(static_cast<std::uintptr_t>(device) + 1);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  STANDIN_DRIVER(cuCtxGetCurrent)
  *context = reinterpret_cast<CUcontext>(static_cast<std::uintptr_t>(current_device()) + 1);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  STANDIN_DRIVER(cuCtxGetDevice)
  *device = current_device();
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
  STANDIN_DRIVER(cuCtxSynchronize)
  return static_cast<CUresult>(cudaDeviceSynchronize());
}
CUresult cuCtxSetCurrent(CUcontext context) {
  STANDIN_DRIVER(cuCtxSetCurrent)
  if (context != nullptr) set_current_device(static_cast<int>(reinterpret_cast<std::uintptr_t>(context)) - 1);
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* version) { return static_cast<CUresult>(cudaDriverGetVersion(version)); }

// ---- kernels that are compiled at run time ----

CUresult cuModuleLoadData(CUmodule* module, const void*) {
  STANDIN_DRIVER(cuModuleLoadData)
  *module = reinterpret_cast<CUmodule>(std::uintptr_t{1});
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
  STANDIN_DRIVER(cuModuleGetFunction)
  *function = reinterpret_cast<CUfunction>(std::uintptr_t{1});
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        CUstream stream, void**, void**) {
  STANDIN_DRIVER(cuLaunchKernel)
  return on_stream(stream, nullptr);
}

// ---- how callers that link no driver find these ----

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  STANDIN_RUNTIME(cudaGetDriverEntryPointByVersion)
  void* const found = find_entry(symbol);
  if (found == nullptr) STANDIN_LOG("cudaGetDriverEntryPointByVersion(%s): the stand-in has none", symbol);
  *function = found != nullptr ? found : reinterpret_cast<void*>(&not_supported);
  if (status != nullptr) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
CUresult cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* status) {
  STANDIN_DRIVER(cuGetProcAddress)
  void* const found = find_entry(symbol);
  *function = found != nullptr ? found : reinterpret_cast<void*>(&not_supported);
  if (status != nullptr) *status = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

}  // extern "C"
