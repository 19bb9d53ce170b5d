// The CUDA allocators of the process, one for each device.
#pragma once

#include <string>

#include "backend/process_ledger.h"
#include "common/options.h"
#include "core/allocator/caching_allocator.h"

namespace mempool {

inline constexpr int kMaxCudaDevices = 64;

// Made at the first call for a device, with `options`; never destroyed. Later calls ignore `options`. Throws
// ConfigError for a device that the driver does not have, and where there is no driver.
CachingAllocator& cuda_device(int ordinal, const Options& options);
// The allocator of a device, or nullptr before it was made.
CachingAllocator* cuda_device_if_made(int ordinal) noexcept;
// Shares what the device holds with other processes, if it was made: see share().
void share_cuda_device(int ordinal, SharedLimit limit);
// Whether there is a driver that can be used; else why not.
bool is_cuda_usable(std::string& why_not);
// Whether the device's allocator has memory that moves and can be shared; else it has plain allocations.
bool cuda_manages_virtual_memory(int ordinal) noexcept;
// A new file descriptor for a handle of the device, which another process can map. -1: the driver gives none.
int cuda_export_handle(int ordinal, const Handle& handle) noexcept;
// Peer access: `peer` may use the memory of `ordinal`, which has an allocator. False: the driver refused.
bool cuda_let_in(int ordinal, int peer) noexcept;
// The device's memory in bytes. Throws ConfigError as cuda_device() does.
std::size_t cuda_device_bytes(int ordinal);

}  // namespace mempool
