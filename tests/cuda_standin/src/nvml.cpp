// As much of NVML as torch asks: which device is behind a bus id, who else uses it, and what it does.
#include <cstddef>
#include <cstdio>

#include "calls.h"
#include "devices.h"

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  unsigned domain = 0;
  unsigned number = 0;
  if (std::sscanf(bus, "%x:%x", &domain, &number) != 2) return 2;  // NVML_ERROR_INVALID_ARGUMENT
  *device = reinterpret_cast<void*>(static_cast<std::size_t>(number));
  return standin::Devices::instance().exists(static_cast<int>(number) - 1) ? 0 : 6;  // NVML_ERROR_NOT_FOUND
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = reinterpret_cast<void*>(static_cast<std::size_t>(index) + 1);
  return standin::Devices::instance().exists(static_cast<int>(index)) ? 0 : 6;
}
int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* count, void*) {
  *count = 0;
  return 0;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, int*) { return 3; }  // NVML_ERROR_NOT_SUPPORTED
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void*, unsigned, void*) { return 3; }
int nvmlDeviceGetGpuFabricInfoV(void*, void*) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13000;
  return 0;
}

}  // extern "C"
