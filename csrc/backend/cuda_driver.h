// The calls of NVIDIA's driver that memory and events need, looked up at run time: the library links against no driver,
// needs no header of CUDA, and loads on a machine without either.
//
// Types and values are those of cuda.h, version 10.2 and newer (NVIDIA, "CUDA Driver API", Virtual Memory Management).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mempool {

class CudaDriver {
 public:
  using Result = int;  // CUresult; 0 is success
  using Address = std::uint64_t;
  using Token = std::uint64_t;  // CUmemGenericAllocationHandle
  static constexpr Result kSuccess = 0;

  struct Location {
    int type = 1;  // CU_MEM_LOCATION_TYPE_DEVICE
    int id = 0;
  };
  struct Properties {      // CUmemAllocationProp
    int type = 1;          // CU_MEM_ALLOCATION_TYPE_PINNED
    int handle_types = 0;  // 1: can be shared as a file descriptor
    Location location;
    void* windows = nullptr;  // for Windows alone
    std::uint8_t flags[8] = {};
  };
  struct Access {  // CUmemAccessDesc
    Location location;
    int flags = 3;  // read and write
  };

  // The driver, opened once. nullptr when there is none, or when it is too old to manage virtual memory; why() then
  // says which.
  static const CudaDriver* instance();
  static std::string why();
  // Whether this process is a forked child of one that had opened the driver: the driver does not work here, and no
  // CudaScope is entered.
  static bool is_forked() noexcept;

  Result (*device_get)(int* device, int ordinal) = nullptr;
  Result (*device_count)(int* count) = nullptr;
  Result (*device_get_attribute)(int* value, int attribute, int device) = nullptr;
  Result (*device_uuid)(char uuid[16], int device) = nullptr;
  Result (*device_total)(std::size_t* bytes, int device) = nullptr;
  Result (*context_retain)(void** context, int device) = nullptr;
  Result (*context_state)(int device, unsigned* flags, int* is_active) = nullptr;  // of the primary one
  Result (*context_get_current)(void** context) = nullptr;
  Result (*context_get_device)(int* device) = nullptr;  // of the current one
  Result (*context_set_current)(void* context) = nullptr;
  Result (*context_synchronize)() = nullptr;
  Result (*granularity)(std::size_t* bytes, const Properties* properties, int option) = nullptr;
  Result (*reserve)(Address* address, std::size_t bytes, std::size_t alignment, Address hint,
                    unsigned long long flags) = nullptr;
  Result (*unreserve)(Address address, std::size_t bytes) = nullptr;
  Result (*create)(Token* token, std::size_t bytes, const Properties* properties, unsigned long long flags) = nullptr;
  Result (*release)(Token token) = nullptr;
  Result (*map)(Address address, std::size_t bytes, std::size_t offset, Token token,
                unsigned long long flags) = nullptr;
  Result (*unmap)(Address address, std::size_t bytes) = nullptr;
  Result (*set_access)(Address address, std::size_t bytes, const Access* access, std::size_t count) = nullptr;
  Result (*export_handle)(void* out, Token token, int type, unsigned long long flags) = nullptr;
  Result (*import_handle)(Token* token, void* descriptor, int type) = nullptr;
  Result (*allocate)(Address* address, std::size_t bytes) = nullptr;
  Result (*free)(Address address) = nullptr;
  Result (*copy_to_host)(void* to, Address from, std::size_t bytes) = nullptr;
  Result (*copy_to_device)(Address to, const void* from, std::size_t bytes) = nullptr;
  Result (*allocate_host)(void** address, std::size_t bytes) = nullptr;
  Result (*free_host)(void* address) = nullptr;
  Result (*register_host)(void* address, std::size_t bytes, unsigned flags) = nullptr;
  Result (*unregister_host)(void* address) = nullptr;
  Result (*exchange_capture_mode)(int* mode) = nullptr;
  Result (*is_capturing)(void* stream, int* status) = nullptr;
  Result (*event_create)(void** event, unsigned flags) = nullptr;
  Result (*event_record)(void* event, void* stream) = nullptr;
  Result (*event_query)(void* event) = nullptr;
  Result (*event_synchronize)(void* event) = nullptr;
  Result (*event_destroy)(void* event) = nullptr;

 private:
  struct Opened {
    const CudaDriver* driver = nullptr;
    std::string problem;
  };
  static const Opened& opened();
  bool open(std::string& problem);
};

// While the scope lives, the calling thread works on the device's own context, and may make calls that the stream
// capture of another part of the program forbids. Its end restores both.
class CudaScope {
 public:
  CudaScope(const CudaDriver& driver, void* context) noexcept;
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;
  ~CudaScope();
  bool is_entered() const noexcept { return is_entered_; }

 private:
  const CudaDriver& driver_;
  void* before_ = nullptr;
  int mode_ = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED
  bool has_before_ = false;
  bool is_entered_ = false;
};

}  // namespace mempool
