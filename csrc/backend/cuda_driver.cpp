#include "backend/cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <type_traits>

namespace mempool {
namespace {

constinit std::atomic<bool> g_is_forked{false};

}  // namespace

bool CudaDriver::open(std::string& problem) {
  void* const library =
      dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // stays open: its functions are called to the end
  if (library == nullptr) {
    problem = "no NVIDIA driver (libcuda.so.1 cannot be loaded)";
    return false;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && problem.empty())
      problem = std::string("the NVIDIA driver is too old: it has no ") + name;
  };
  Result (*initialize)(unsigned) = nullptr;
  find(initialize, "cuInit");
  find(device_get, "cuDeviceGet");
  find(device_count, "cuDeviceGetCount");
  find(device_get_attribute, "cuDeviceGetAttribute");
  find(device_uuid, "cuDeviceGetUuid_v2");
  find(device_total, "cuDeviceTotalMem_v2");
  find(context_retain, "cuDevicePrimaryCtxRetain");
  find(context_state, "cuDevicePrimaryCtxGetState");
  find(context_get_current, "cuCtxGetCurrent");
  find(context_get_device, "cuCtxGetDevice");
  find(context_set_current, "cuCtxSetCurrent");
  find(context_synchronize, "cuCtxSynchronize");
  find(granularity, "cuMemGetAllocationGranularity");
  find(reserve, "cuMemAddressReserve");
  find(unreserve, "cuMemAddressFree");
  find(create, "cuMemCreate");
  find(release, "cuMemRelease");
  find(map, "cuMemMap");
  find(unmap, "cuMemUnmap");
  find(set_access, "cuMemSetAccess");
  find(export_handle, "cuMemExportToShareableHandle");
  find(import_handle, "cuMemImportFromShareableHandle");
  find(allocate, "cuMemAlloc_v2");
  find(free, "cuMemFree_v2");
  find(copy_to_host, "cuMemcpyDtoH_v2");
  find(copy_to_device, "cuMemcpyHtoD_v2");
  find(allocate_host, "cuMemAllocHost_v2");
  find(free_host, "cuMemFreeHost");
  find(register_host, "cuMemHostRegister_v2");
  find(unregister_host, "cuMemHostUnregister");
  find(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode");
  find(is_capturing, "cuStreamIsCapturing");
  find(event_create, "cuEventCreate");
  find(event_record, "cuEventRecord");
  find(event_query, "cuEventQuery");
  find(event_synchronize, "cuEventSynchronize");
  find(event_destroy, "cuEventDestroy_v2");
  if (problem.empty() && initialize(0) != kSuccess) problem = "the NVIDIA driver finds no device (cuInit failed)";
  return problem.empty();
}

const CudaDriver::Opened& CudaDriver::opened() {
  static const Opened* const once = [] {
    auto* const made = new Opened;  // immortal, as allocators are
    auto* const driver = new CudaDriver;
    if (driver->open(made->problem)) made->driver = driver;
    if (made->driver != nullptr) pthread_atfork(nullptr, nullptr, [] { g_is_forked.store(true); });
    return made;
  }();
  return *once;
}

const CudaDriver* CudaDriver::instance() { return opened().driver; }

bool CudaDriver::is_forked() noexcept { return g_is_forked.load(std::memory_order_relaxed); }

std::string CudaDriver::why() { return opened().problem; }

CudaScope::CudaScope(const CudaDriver& driver, void* context) noexcept : driver_(driver) {
  if (CudaDriver::is_forked()) return;
  has_before_ = driver_.context_get_current(&before_) == CudaDriver::kSuccess;
  if (!has_before_) return;
  if (before_ != context && driver_.context_set_current(context) != CudaDriver::kSuccess) return;
  is_entered_ = driver_.exchange_capture_mode(&mode_) == CudaDriver::kSuccess;
}

CudaScope::~CudaScope() {
  if (is_entered_) driver_.exchange_capture_mode(&mode_);
  if (has_before_) driver_.context_set_current(before_);
}

}  // namespace mempool
