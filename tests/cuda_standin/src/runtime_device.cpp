// The runtime's calls for devices, kernels and errors. Kernels do nothing; their launches are counted and keep their
// place in streams and graphs.
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "calls.h"
#include "devices.h"
#include "streams.h"

using namespace standin;

namespace {

constexpr int kVersion = 13000;
constexpr int kProcessors = 108;

// Ten times the major number and the minor one.
int capability() {
  static const int chosen = [] {
    const char* const text = std::getenv("CUDA_STANDIN_CAPABILITY");
    return text == nullptr ? 80 : static_cast<int>(std::strtod(text, nullptr) * 10 + 0.5);
  }();
  return chosen;
}

struct CallConfiguration {
  dim3 grid;
  dim3 block;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
};
thread_local CallConfiguration t_configuration;

cudaError_t launch(cudaStream_t handle) {
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
  return remember(Streams::instance().enqueue(*stream, Node::Kind::kernel, nullptr));
}

int attribute(cudaDeviceAttr which) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      return capability() / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return capability() % 10;
    case cudaDevAttrMultiProcessorCount:
      return kProcessors;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxBlockDimX:
      return 1024;
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
      return 65535;
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 163 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 164 << 10;
    case cudaDevAttrMaxRegistersPerBlock:
      return 65536;
    case cudaDevAttrL2CacheSize:
      return 40 << 20;
    case cudaDevAttrMemoryPoolsSupported:
      return 1;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

extern "C" {

// ---- devices ----

cudaError_t cudaGetDeviceCount(int* count) {
  STANDIN_RUNTIME(cudaGetDeviceCount)
  *count = Devices::instance().count();
  return *count > 0 ? cudaSuccess : remember(cudaErrorNoDevice);
}
// On the way of every block, and a few nanoseconds in the real runtime: it is not counted, and takes no lock.
cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  STANDIN_RUNTIME(cudaSetDevice)
  if (!Devices::instance().exists(device)) return remember(cudaErrorInvalidDevice);
  set_current_device(device);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  STANDIN_RUNTIME(cudaDeviceGetAttribute)
  if (!Devices::instance().exists(device)) return remember(cudaErrorInvalidDevice);
  *value = attribute(which);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  STANDIN_RUNTIME(cudaGetDeviceProperties)
  if (!Devices::instance().exists(device)) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "CUDA stand-in (no GPU)");
  properties->totalGlobalMem = Devices::instance().memory(device).capacity;
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = kProcessors;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 163 << 10;
  properties->sharedMemPerMultiprocessor = 164 << 10;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->l2CacheSize = 40 << 20;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->unifiedAddressing = 1;
  properties->pciBusID = device + 1;
  std::memset(properties->uuid.bytes, device + 1, sizeof properties->uuid.bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  STANDIN_RUNTIME(cudaDeviceGetPCIBusId)
  std::strncpy(text, text_of("0000:%02x:00.0", device + 1).c_str(), static_cast<std::size_t>(length));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  STANDIN_RUNTIME(cudaDeviceGetStreamPriorityRange)
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  STANDIN_RUNTIME(cudaDeviceCanAccessPeer)
  *can = device != peer;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  STANDIN_RUNTIME(cudaDeviceEnablePeerAccess)
  return cudaSuccess;
}
cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* value) {
  STANDIN_RUNTIME(cudaDeviceGetGraphMemAttribute)
  std::memset(value, 0, sizeof(std::uint64_t));
  return cudaSuccess;
}
cudaError_t cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void*) {
  STANDIN_RUNTIME(cudaDeviceSetGraphMemAttribute)
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  STANDIN_RUNTIME(cudaDriverGetVersion)
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  STANDIN_RUNTIME(cudaRuntimeGetVersion)
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaProfilerStart() {
  STANDIN_RUNTIME(cudaProfilerStart)
  return cudaSuccess;
}
cudaError_t cudaProfilerStop() {
  STANDIN_RUNTIME(cudaProfilerStop)
  return cudaSuccess;
}

// ---- errors ----

cudaError_t cudaGetLastError() { return last_error(true); }
cudaError_t cudaPeekAtLastError() { return last_error(false); }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess                 ? "cudaSuccess"
         : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
         : error == cudaErrorNotReady         ? "cudaErrorNotReady"
                                              : "cudaError";
}
const char* cudaGetErrorString(cudaError_t error) {
  static const struct {
    cudaError_t error;
    const char* text;
  } kTexts[] = {
      {cudaSuccess, "no error"},
      {cudaErrorMemoryAllocation, "out of memory"},
      {cudaErrorInvalidValue, "invalid argument"},
      {cudaErrorNotReady, "device not ready"},
      {cudaErrorNoDevice, "no CUDA-capable device is detected"},
      {cudaErrorInvalidDevice, "invalid device ordinal"},
      {cudaErrorInvalidResourceHandle, "invalid resource handle"},
      {cudaErrorNotSupported, "operation not supported"},
      {cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"},
      {cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"},
      {cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"},
      {cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"},
      {cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"},
  };
  for (const auto& [each, text] : kTexts) {
    if (each == error) return text;
  }
  return "an error that the stand-in has no text for";
}

// ---- kernels ----

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, std::size_t, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaLaunchKernel)
  return launch(stream);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, std::size_t, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaLaunchKernel)
  return launch(stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void*, void**) {
  STANDIN_RUNTIME(cudaLaunchKernel)
  return launch(configuration->stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, std::size_t, cudaStream_t stream) {
  STANDIN_RUNTIME(cudaLaunchKernel)
  return launch(stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  STANDIN_RUNTIME(cudaFuncGetAttributes)
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = capability();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  STANDIN_RUNTIME(cudaFuncSetAttribute)
  return cudaSuccess;
}
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
  STANDIN_RUNTIME(cudaKernelSetAttributeForDevice)
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) {
  STANDIN_RUNTIME(cudaOccupancyMaxActiveBlocksPerMultiprocessor)
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, std::size_t,
                                                                   unsigned) {
  STANDIN_RUNTIME(cudaOccupancyMaxActiveBlocksPerMultiprocessor)
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  STANDIN_RUNTIME(cudaGetSymbolAddress)
  static char symbol[4096];  // nothing reads it: kernels do nothing
  *address = symbol;
  return cudaSuccess;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  STANDIN_RUNTIME(cudaLibraryLoadData)
  *library = reinterpret_cast<cudaLibrary_t>(std::uintptr_t{1});
  return cudaSuccess;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t) {
  STANDIN_RUNTIME(cudaLibraryUnload)
  return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char*) {
  STANDIN_RUNTIME(cudaLibraryGetKernel)
  *kernel = reinterpret_cast<cudaKernel_t>(std::uintptr_t{1});
  return cudaSuccess;
}

// ---- what compiled kernels call when their library is loaded, and before each launch ----

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
char __cudaInitModule(void**) { return 1; }
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void*) {
  *kernel = reinterpret_cast<cudaKernel_t>(std::uintptr_t{1});
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream) {
  t_configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = t_configuration.grid;
  *block = t_configuration.block;
  *shared = t_configuration.shared;
  *static_cast<cudaStream_t*>(stream) = t_configuration.stream;
  return cudaSuccess;
}

}  // extern "C"
