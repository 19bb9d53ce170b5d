// Reserves, maps and looks up device addresses.
#include "address_space.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "devices.h"

namespace standin {
namespace {

constexpr std::size_t kPage = 4096;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }
void* pointer_to(std::uintptr_t address) { return reinterpret_cast<void*>(address); }
std::uintptr_t number_of(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// The entry of `ranges` (by start) whose range holds `address`, or end(). `bytes_of` gives an entry's length.
template <typename Map, typename BytesOf>
auto holder_of(Map& ranges, std::uintptr_t address, BytesOf bytes_of) {
  auto found = ranges.upper_bound(address);
  if (found == ranges.begin()) return ranges.end();
  --found;
  return address - found->first < bytes_of(found->second) ? found : ranges.end();
}

// `bytes` of inaccessible address space, aligned.
void* reserve_space(std::size_t bytes, std::size_t alignment) {
  void* const raw = mmap(nullptr, bytes + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const std::uintptr_t start = round_up(number_of(raw), alignment);
  const std::uintptr_t end = number_of(raw) + bytes + alignment;
  if (start > number_of(raw)) munmap(raw, start - number_of(raw));
  if (end > start + bytes) munmap(pointer_to(start + bytes), end - start - bytes);
  return pointer_to(start);
}

bool make_inaccessible(std::uintptr_t start, std::size_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap(pointer_to(start), bytes, PROT_NONE, kFlags, -1, 0) != MAP_FAILED;
}

}  // namespace

AddressSpace& AddressSpace::instance() {
  static AddressSpace* const space = new AddressSpace;
  return *space;
}

// ---- plain allocations ----

CUresult AddressSpace::allocate(int device, std::size_t bytes, void** address) {
  Memory& memory = Devices::instance().memory(device);
  // The driver hands memory out in pieces of its own; a smaller request still uses up one.
  const std::size_t mapped = round_up(bytes, kGranularity);
  if (mapped < bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const std::int64_t offset = memory.take(mapped);
  if (offset < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  void* const space = reserve_space(mapped, kGranularity);
  if (space == nullptr || mmap(space, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                               memory.file(), offset) == MAP_FAILED) {
    memory.give_back(offset);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  allocations_[number_of(space)] = {bytes, mapped, device, offset, false};
  *address = space;
  return CUDA_SUCCESS;
}

CUresult AddressSpace::allocate_host(std::size_t bytes, void** address) {
  const std::size_t mapped = round_up(bytes, kPage);
  void* const space = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (space == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  allocations_[number_of(space)] = {bytes, mapped, -1, -1, false};
  *address = space;
  return CUDA_SUCCESS;
}

CUresult AddressSpace::register_host(void* address, std::size_t bytes) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const auto next = allocations_.lower_bound(number_of(address));
  const bool reaches_next = next != allocations_.end() && next->first < number_of(address) + bytes;
  if (reaches_next || find(address).device != -2) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  allocations_[number_of(address)] = {bytes, bytes, -1, -1, true};
  return CUDA_SUCCESS;
}

std::size_t AddressSpace::pinned_bytes() const {
  std::size_t sum = 0;
  for (const auto& [address, allocation] : allocations_) sum += allocation.device == -1 ? allocation.mapped : 0;
  return sum;
}

CUresult AddressSpace::free(void* address) {
  const auto found = allocations_.find(number_of(address));
  if (found == allocations_.end()) return CUDA_ERROR_INVALID_VALUE;
  const Allocation gone = found->second;
  allocations_.erase(found);
  if (gone.registered) return CUDA_SUCCESS;
  munmap(address, gone.mapped);
  if (gone.offset >= 0) Devices::instance().memory(gone.device).give_back(gone.offset);
  return CUDA_SUCCESS;
}

// ---- virtual memory management ----

CUresult AddressSpace::reserve(std::size_t bytes, std::size_t alignment, CUdeviceptr* address) {
  if (bytes == 0 || bytes % kGranularity != 0) return CUDA_ERROR_INVALID_VALUE;
  void* const space = reserve_space(bytes, alignment > kGranularity ? alignment : kGranularity);
  if (space == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  reservations_[number_of(space)] = bytes;
  *address = number_of(space);
  return CUDA_SUCCESS;
}

CUresult AddressSpace::unreserve(CUdeviceptr address, std::size_t bytes) {
  const auto found = reservations_.find(address);
  if (found == reservations_.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto mapped = mappings_.lower_bound(address);
  if (mapped != mappings_.end() && mapped->first < address + bytes) return CUDA_ERROR_INVALID_VALUE;
  munmap(pointer_to(address), bytes);
  reservations_.erase(found);
  return CUDA_SUCCESS;
}

CUresult AddressSpace::create(int device, std::size_t bytes, bool is_shareable, CUmemGenericAllocationHandle* handle) {
  if (bytes == 0 || bytes % kGranularity != 0) return CUDA_ERROR_INVALID_VALUE;
  Memory& memory = Devices::instance().memory(device);
  const std::int64_t offset = memory.take(bytes);
  if (offset < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  handles_[next_handle_] = {bytes, device, offset, is_shareable, -1, 1, 0};
  *handle = next_handle_++;
  return CUDA_SUCCESS;
}

void AddressSpace::drop_if_unused(CUmemGenericAllocationHandle handle) {
  const auto found = handles_.find(handle);
  if (found->second.references > 0 || found->second.mappings > 0) return;
  if (found->second.imported >= 0) {
    close(found->second.imported);
  } else {
    Devices::instance().memory(found->second.device).give_back(found->second.offset);
  }
  handles_.erase(found);
}

CUresult AddressSpace::release(CUmemGenericAllocationHandle handle) {
  const auto found = handles_.find(handle);
  if (found == handles_.end() || found->second.references == 0) return CUDA_ERROR_INVALID_VALUE;
  --found->second.references;
  drop_if_unused(handle);
  return CUDA_SUCCESS;
}

CUresult AddressSpace::retain(CUdeviceptr address, CUmemGenericAllocationHandle* handle) {
  const auto found = holder_of(mappings_, address, [](const Mapping& mapping) { return mapping.bytes; });
  if (found == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
  ++handles_.at(found->second.handle).references;
  *handle = found->second.handle;
  return CUDA_SUCCESS;
}

// A handle is mapped whole, as the driver demands.
CUresult AddressSpace::map(CUdeviceptr address, std::size_t bytes, CUmemGenericAllocationHandle handle) {
  const auto found = handles_.find(handle);
  if (found == handles_.end() || found->second.references == 0 ||
      (found->second.imported < 0 && found->second.bytes != bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto home = holder_of(reservations_, address, [](std::size_t size) { return size; });
  if (address % kGranularity != 0 || home == reservations_.end() || address + bytes > home->first + home->second) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto after = mappings_.lower_bound(address);
  if (after != mappings_.end() && after->first < address + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (holder_of(mappings_, address, [](const Mapping& m) { return m.bytes; }) != mappings_.end()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Physical& physical = found->second;
  const int file = physical.imported >= 0 ? physical.imported : Devices::instance().memory(physical.device).file();
  if (mmap(pointer_to(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, physical.offset) ==
      MAP_FAILED) {
    make_inaccessible(address, bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  mappings_[address] = {bytes, handle};
  ++physical.mappings;
  return CUDA_SUCCESS;
}

// Whole mappings, without gaps.
CUresult AddressSpace::unmap(CUdeviceptr address, std::size_t bytes) {
  std::uintptr_t next = address;
  for (auto at = mappings_.find(address); at != mappings_.end() && at->first == next && next < address + bytes; ++at) {
    next += at->second.bytes;
  }
  if (bytes == 0 || next != address + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (!make_inaccessible(address, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  for (auto at = mappings_.find(address); at != mappings_.end() && at->first < address + bytes;) {
    const CUmemGenericAllocationHandle handle = at->second.handle;
    at = mappings_.erase(at);
    --handles_.at(handle).mappings;
    drop_if_unused(handle);
  }
  return CUDA_SUCCESS;
}

CUresult AddressSpace::set_access(CUdeviceptr address, std::size_t bytes, bool readable, bool writable) {
  for (std::uintptr_t next = address; next < address + bytes;) {
    const auto at = holder_of(mappings_, next, [](const Mapping& mapping) { return mapping.bytes; });
    if (at == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
    next = at->first + at->second.bytes;
  }
  const int protection = (readable ? PROT_READ : PROT_NONE) | (writable ? PROT_WRITE : PROT_NONE);
  return mprotect(pointer_to(address), bytes, protection) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// A descriptor of the device's memory whose position is where the handle begins.
CUresult AddressSpace::export_handle(CUmemGenericAllocationHandle handle, int* descriptor) {
  const auto found = handles_.find(handle);
  if (found == handles_.end() || !found->second.is_shareable) return CUDA_ERROR_INVALID_VALUE;
  const std::string path = "/proc/self/fd/" + std::to_string(Devices::instance().memory(found->second.device).file());
  *descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (*descriptor < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  lseek(*descriptor, found->second.offset, SEEK_SET);
  return CUDA_SUCCESS;
}

// The memory stays the exporter's: here it takes up no capacity of its own.
CUresult AddressSpace::import_handle(int descriptor, CUmemGenericAllocationHandle* handle) {
  const off_t offset = lseek(descriptor, 0, SEEK_CUR);
  if (offset < 0 || offset % static_cast<off_t>(kGranularity) != 0) return CUDA_ERROR_INVALID_VALUE;
  const int imported = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (imported < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  handles_[next_handle_] = {0, current_device(), offset, true, imported, 1, 0};
  *handle = next_handle_++;
  return CUDA_SUCCESS;
}

AddressSpace::Place AddressSpace::find(const void* address) const {
  const std::uintptr_t number = number_of(address);
  const auto plain = holder_of(allocations_, number, [](const Allocation& each) { return each.mapped; });
  if (plain != allocations_.end()) return {plain->second.device, plain->first, plain->second.bytes};
  const auto mapped = holder_of(mappings_, number, [](const Mapping& each) { return each.bytes; });
  if (mapped != mappings_.end()) {
    return {handles_.at(mapped->second.handle).device, mapped->first, mapped->second.bytes};
  }
  return {};
}

}  // namespace standin
