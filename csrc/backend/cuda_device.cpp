#include "backend/cuda_device.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "backend/cuda_driver.h"
#include "backend/cuda_memory.h"
#include "backend/cuda_plain_memory.h"
#include "backend/decay_thread.h"
#include "backend/fork_safety.h"
#include "backend/process_ledger.h"
#include "common/errors.h"

namespace mempool {
namespace {

std::array<std::atomic<CachingAllocator*>, kMaxCudaDevices> g_devices{};
std::array<CudaMemory*, kMaxCudaDevices> g_memory{};  // of devices that can manage virtual memory

const CudaDriver& driver() {
  const CudaDriver* const found = CudaDriver::instance();
  if (found == nullptr) throw ConfigError("cuda: " + CudaDriver::why() + ".");
  if (CudaDriver::is_forked()) {
    throw ConfigError("cuda: a forked process cannot use the driver that its parent has used. Start it with 'spawn'.");
  }
  return *found;
}

[[noreturn]] void refuse(int ordinal) {
  throw ConfigError("cuda:" + std::to_string(ordinal) + ": the driver has no such device, or does not let it be used.");
}

// The same in every process, whichever devices it sees.
std::string uuid_of(int ordinal) {
  int device = 0;
  char uuid[16] = {};
  if (driver().device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver().device_uuid(uuid, device) != CudaDriver::kSuccess) {
    refuse(ordinal);
  }
  std::string out = "cuda-";
  for (const char byte : uuid) {
    constexpr const char* kDigits = "0123456789abcdef";
    out += kDigits[static_cast<unsigned char>(byte) >> 4];
    out += kDigits[static_cast<unsigned char>(byte) & 15];
  }
  return out;
}

}  // namespace

bool is_cuda_usable(std::string& why_not) {
  why_not = CudaDriver::why();
  return CudaDriver::instance() != nullptr;
}

std::size_t cuda_device_bytes(int ordinal) {
  int device = 0;
  std::size_t bytes = 0;
  if (driver().device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver().device_total(&bytes, device) != CudaDriver::kSuccess) {
    refuse(ordinal);
  }
  return bytes;
}

CachingAllocator& cuda_device(int ordinal, const Options& options) {
  if (ordinal < 0 || ordinal >= kMaxCudaDevices) refuse(ordinal);
  auto& entry = g_devices[static_cast<std::size_t>(ordinal)];
  const std::lock_guard guard(device_making());
  if (CachingAllocator* const made = entry.load()) return *made;
  std::unique_ptr<PhysicalMemory> memory;
  CudaMemory* managed = nullptr;
  if (CudaMemory::is_supported(driver(), ordinal)) {
    std::unique_ptr<CudaMemory> supported = CudaMemory::make(driver(), ordinal);
    managed = supported.get();
    memory = std::move(supported);
  } else {
    memory = CudaPlainMemory::make(driver(), ordinal);
  }
  if (memory == nullptr) refuse(ordinal);
  Options own = options;
  // A device's address space costs nothing: one reservation for all of its memory leaves each range room to grow.
  if (options.segment_bytes == Options{}.segment_bytes) own.segment_bytes = cuda_device_bytes(ordinal);
  auto made = std::make_unique<CachingAllocator>("cuda:" + std::to_string(ordinal), std::move(memory), own);
  if (process_ledger() != nullptr) share_when_made(*made, uuid_of(ordinal), cuda_device_bytes(ordinal));
  if (own.reserve > 0) made->reserve(nullptr, own.reserve);  // refused: there is no device, and nothing knows of it
  survive_fork(*made);
  made->set_growth_hook(ensure_decay_thread_of_driver);
  if (own.reserve > 0) ensure_decay_thread_of_driver(*made);
  g_memory[static_cast<std::size_t>(ordinal)] = managed;
  entry.store(made.get());
  return *made.release();
}

CachingAllocator* cuda_device_if_made(int ordinal) noexcept {
  if (ordinal < 0 || ordinal >= kMaxCudaDevices) return nullptr;
  return g_devices[static_cast<std::size_t>(ordinal)].load(std::memory_order_acquire);
}

void share_cuda_device(int ordinal, SharedLimit limit) {
  CachingAllocator* const device = cuda_device_if_made(ordinal);
  if (device != nullptr) share(*device, uuid_of(ordinal), limit);
}

bool cuda_manages_virtual_memory(int ordinal) noexcept {
  return cuda_device_if_made(ordinal) != nullptr && g_memory[static_cast<std::size_t>(ordinal)] != nullptr;
}

bool cuda_let_in(int ordinal, int peer) noexcept {
  CachingAllocator* const device = cuda_device_if_made(ordinal);
  if (device == nullptr || peer < 0 || peer >= kMaxCudaDevices) return false;
  if (!cuda_manages_virtual_memory(ordinal)) return true;  // torch's own call has enabled peer access
  CudaMemory* const memory = g_memory[static_cast<std::size_t>(ordinal)];
  memory->let_in(peer);
  if (device->arenas().open_again()) return true;
  memory->shut_out(peer);
  device->arenas().open_again();
  return false;
}

int cuda_export_handle(int ordinal, const Handle& handle) noexcept {
  if (!cuda_manages_virtual_memory(ordinal)) return -1;
  return g_memory[static_cast<std::size_t>(ordinal)]->export_handle(handle);
}

}  // namespace mempool
