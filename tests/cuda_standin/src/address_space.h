// Which device address is what: plain allocations, reserved ranges, and what is mapped in them.
//
// Addresses are the host's own, so that a copy is a memmove and an access to an unmapped one faults.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <map>

namespace standin {

class AddressSpace {
 public:
  static AddressSpace& instance();

  // ---- plain allocations: cudaMalloc, and pinned host memory (device -1)
  struct Allocation {
    std::size_t bytes = 0;   // as asked
    std::size_t mapped = 0;  // rounded up
    int device = 0;
    std::int64_t offset = -1;
    bool registered = false;  // host memory that the caller owns
  };
  CUresult allocate(int device, std::size_t bytes, void** address);
  CUresult allocate_host(std::size_t bytes, void** address);
  CUresult register_host(void* address, std::size_t bytes);
  CUresult free(void* address);
  std::size_t pinned_bytes() const;  // of host memory, allocated or registered

  // ---- virtual memory management
  CUresult reserve(std::size_t bytes, std::size_t alignment, CUdeviceptr* address);
  CUresult unreserve(CUdeviceptr address, std::size_t bytes);
  CUresult create(int device, std::size_t bytes, bool is_shareable, CUmemGenericAllocationHandle* handle);
  CUresult release(CUmemGenericAllocationHandle handle);
  CUresult retain(CUdeviceptr address, CUmemGenericAllocationHandle* handle);
  CUresult map(CUdeviceptr address, std::size_t bytes, CUmemGenericAllocationHandle handle);
  CUresult unmap(CUdeviceptr address, std::size_t bytes);
  CUresult set_access(CUdeviceptr address, std::size_t bytes, bool readable, bool writable);
  CUresult export_handle(CUmemGenericAllocationHandle handle, int* descriptor);
  CUresult import_handle(int descriptor, CUmemGenericAllocationHandle* handle);

  // Device of an address; -1: host memory that CUDA knows; -2: unknown. `base` and `bytes`: of what holds it.
  struct Place {
    int device = -2;
    std::uintptr_t base = 0;
    std::size_t bytes = 0;
  };
  Place find(const void* address) const;
  std::size_t live_handles() const { return handles_.size(); }
  std::size_t live_mappings() const { return mappings_.size(); }
  std::size_t live_reservations() const { return reservations_.size(); }

 private:
  struct Physical {
    std::size_t bytes = 0;
    int device = 0;
    std::int64_t offset = 0;  // in the device's memory, or in `imported`
    bool is_shareable = false;
    int imported = -1;  // of another process: the file that its device's memory is. Its size is what is mapped.
    int references = 1;
    std::size_t mappings = 0;
  };
  struct Mapping {
    std::size_t bytes = 0;
    CUmemGenericAllocationHandle handle = 0;
  };
  void drop_if_unused(CUmemGenericAllocationHandle handle);

  std::map<std::uintptr_t, Allocation> allocations_;
  std::map<std::uintptr_t, std::size_t> reservations_;
  std::map<std::uintptr_t, Mapping> mappings_;
  std::map<CUmemGenericAllocationHandle, Physical> handles_;
  CUmemGenericAllocationHandle next_handle_ = 1;
};

}  // namespace standin
