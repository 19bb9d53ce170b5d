#include "backend/cuda_memory.h"

#include <cstring>
#include <new>
#include <vector>

#include "common/expects.h"

namespace mempool {
namespace {

constexpr int kVirtualMemorySupported = 102;    // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
constexpr int kFileDescriptorsSupported = 103;  // …_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
constexpr int kFileDescriptor = 1;              // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
constexpr int kMinimumGranularity = 0;

constinit std::atomic<CudaMemory::Observer> g_observer{nullptr};

CudaDriver::Address number_of(const void* address) { return reinterpret_cast<CudaDriver::Address>(address); }

CudaDriver::Properties properties_of(int device, bool is_shareable) {
  CudaDriver::Properties properties;
  properties.location.id = device;
  properties.handle_types = is_shareable ? kFileDescriptor : 0;
  return properties;
}

// Contents of sleeping memory in pinned host memory, one piece for each range that was saved.
class PinnedBackup final : public Backup {
 public:
  PinnedBackup(const CudaDriver& driver, void* context) : driver_(driver), context_(context) {}
  ~PinnedBackup() override {
    const CudaScope scope(driver_, context_);
    if (CudaDriver::is_forked()) return;
    for (const Piece& piece : pieces_) driver_.free_host(piece.copy);
  }

  bool save(const void* address, std::size_t bytes) noexcept override {
    const CudaScope scope(driver_, context_);
    if (!scope.is_entered()) return fails("the CUDA driver cannot be used from here");
    try {
      pieces_.reserve(pieces_.size() + 1);
    } catch (const std::bad_alloc&) {
      return fails("no memory is left for their records");
    }
    void* copy = nullptr;
    CudaDriver::Result result = driver_.allocate_host(&copy, bytes);
    if (result != CudaDriver::kSuccess) return fails("the CUDA driver gives no pinned host memory for them", result);
    result = driver_.copy_to_host(copy, number_of(address), bytes);
    if (result != CudaDriver::kSuccess) {
      driver_.free_host(copy);
      return fails("the CUDA driver does not copy them to the host", result);
    }
    pieces_.push_back({number_of(address), bytes, copy});
    return true;
  }

  bool restore() noexcept override {
    const CudaScope scope(driver_, context_);
    if (!scope.is_entered()) return fails("the CUDA driver cannot be used from here");
    for (const Piece& piece : pieces_) {
      const CudaDriver::Result result = driver_.copy_to_device(piece.address, piece.copy, piece.bytes);
      if (result != CudaDriver::kSuccess) return fails("the CUDA driver does not copy them to the device", result);
    }
    return true;
  }

  std::string problem() const override {
    const std::string what = std::string("its contents: ") + what_;
    return result_ == CudaDriver::kSuccess ? what : what + " (error " + std::to_string(result_) + ")";
  }

 private:
  bool fails(const char* what, CudaDriver::Result result = CudaDriver::kSuccess) noexcept {
    what_ = what;
    result_ = result;
    return false;
  }

  struct Piece {
    CudaDriver::Address address;
    std::size_t bytes;
    void* copy;
  };
  const CudaDriver& driver_;
  void* const context_;
  const char* what_ = "";
  CudaDriver::Result result_ = CudaDriver::kSuccess;
  std::vector<Piece> pieces_;
};

}  // namespace

bool CudaMemory::is_supported(const CudaDriver& driver, int ordinal) noexcept {
  int device = 0;
  int is_supported = 0;
  return driver.device_get(&device, ordinal) == CudaDriver::kSuccess &&
         driver.device_get_attribute(&is_supported, kVirtualMemorySupported, device) == CudaDriver::kSuccess &&
         is_supported != 0;
}

std::unique_ptr<CudaMemory> CudaMemory::make(const CudaDriver& driver, int ordinal) {
  int device = 0;
  void* context = nullptr;
  if (driver.device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver.context_retain(&context, device) != CudaDriver::kSuccess) {
    return nullptr;
  }
  std::size_t granule = 0;
  int is_shareable = 0;
  std::size_t total = SIZE_MAX;
  driver.device_total(&total, device);
  driver.device_get_attribute(&is_shareable, kFileDescriptorsSupported, device);
  const CudaDriver::Properties properties = properties_of(device, is_shareable != 0);
  const CudaScope scope(driver, context);
  if (!scope.is_entered() || driver.granularity(&granule, &properties, kMinimumGranularity) != CudaDriver::kSuccess ||
      granule == 0 || (granule & (granule - 1)) != 0) {
    return nullptr;
  }
  return std::unique_ptr<CudaMemory>(new CudaMemory(driver, device, context, granule, is_shareable != 0, total));
}

CudaMemory::CudaMemory(const CudaDriver& driver, int device, void* context, std::size_t granule, bool is_shareable,
                       std::size_t total)
    : driver_(driver),
      device_(device),
      context_(context),
      granule_(granule),
      is_shareable_(is_shareable),
      total_(total),
      events_(driver, context),
      let_in_(std::uint64_t{1} << device),
      most_(total) {
  MEMPOOL_EXPECTS(device >= 0 && device < kMostDevices);
}

void CudaMemory::set_observer(Observer observer) noexcept { g_observer.store(observer); }

void CudaMemory::observe(int device, bool mapped, void* address, std::size_t bytes) noexcept {
  if (const auto observer = g_observer.load(std::memory_order_relaxed)) observer(device, mapped, address, bytes);
}

void CudaMemory::let_in(int device) noexcept {
  MEMPOOL_EXPECTS(device >= 0 && device < kMostDevices);
  let_in_.fetch_or(std::uint64_t{1} << device);
}

void CudaMemory::shut_out(int device) noexcept {
  MEMPOOL_EXPECTS(device >= 0 && device < kMostDevices && device != device_);
  let_in_.fetch_and(~(std::uint64_t{1} << device));
}

int CudaMemory::export_handle(const Handle& handle) noexcept {
  const CudaScope scope(driver_, context_);
  int descriptor = -1;
  if (!scope.is_entered() || !is_shareable_ ||
      driver_.export_handle(&descriptor, handle.token, kFileDescriptor, 0) != CudaDriver::kSuccess) {
    return -1;
  }
  return descriptor;
}

void* CudaMemory::reserve_addresses(std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(nullptr, bytes));
  const CudaScope scope(driver_, context_);
  CudaDriver::Address address = 0;
  if (!scope.is_entered() || driver_.reserve(&address, bytes, granule_, 0, 0) != CudaDriver::kSuccess) return nullptr;
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

void CudaMemory::free_addresses(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  const CudaScope scope(driver_, context_);
  if (!CudaDriver::is_forked()) driver_.unreserve(number_of(address), bytes);
}

bool CudaMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  MEMPOOL_EXPECTS(address != nullptr && is_on_granules(address, bytes));
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return false;
  release_waiting();
  const CudaDriver::Properties properties = properties_of(device_, is_shareable_);
  CudaDriver::Token token = 0;
  if (driver_.create(&token, bytes, &properties, 0) != CudaDriver::kSuccess) {
    most_.store(committed_.load() + granule_);
    return false;
  }
  if (driver_.map(number_of(address), bytes, 0, token, 0) != CudaDriver::kSuccess) {
    release_later(token);
    return false;
  }
  out = {address, bytes, token};
  if (committed_.fetch_add(bytes) + bytes > most_.load()) most_.store(total_);  // the driver has more again
  observe(device_, true, address, bytes);
  return true;
}

bool CudaMemory::open(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(address, bytes));
  const CudaScope scope(driver_, context_);
  std::array<CudaDriver::Access, kMostDevices> access;
  std::size_t count = 0;
  const std::uint64_t let_in = let_in_.load();
  for (int device = 0; device < kMostDevices; ++device) {
    if ((let_in >> device & 1) != 0) access[count++].location.id = device;
  }
  return scope.is_entered() &&
         driver_.set_access(number_of(address), bytes, access.data(), count) == CudaDriver::kSuccess;
}

bool CudaMemory::decommit(const Handle& handle) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(handle.address, handle.bytes));
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered()) return false;
  release_waiting();
  if (driver_.unmap(number_of(handle.address), handle.bytes) != CudaDriver::kSuccess) return false;
  release_later(handle.token);
  [[maybe_unused]] const std::size_t before = committed_.fetch_sub(handle.bytes);
  MEMPOOL_EXPECTS(before >= handle.bytes);
  observe(device_, false, handle.address, handle.bytes);
  return true;
}

// The old address stays mapped for work that still uses it.
bool CudaMemory::move(Handle& handle, void* to) noexcept {
  MEMPOOL_EXPECTS(to != handle.address && is_on_granules(to, handle.bytes));
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered() || driver_.map(number_of(to), handle.bytes, 0, handle.token, 0) != CudaDriver::kSuccess) {
    return false;
  }
  handle.address = to;
  observe(device_, true, to, handle.bytes);
  return true;
}

bool CudaMemory::move_back(Handle& handle, void* from) noexcept {
  MEMPOOL_EXPECTS(from != handle.address && is_on_granules(from, handle.bytes));
  if (!unmap(handle.address, handle.bytes)) return false;
  handle.address = from;
  return true;
}

bool CudaMemory::unmap(void* address, std::size_t bytes) noexcept {
  MEMPOOL_EXPECTS(is_on_granules(address, bytes));
  const CudaScope scope(driver_, context_);
  if (!scope.is_entered() || driver_.unmap(number_of(address), bytes) != CudaDriver::kSuccess) return false;
  observe(device_, false, address, bytes);
  return true;
}

void CudaMemory::release_later(CudaDriver::Token token) noexcept {
  if (driver_.release(token) == CudaDriver::kSuccess) return;
  const std::lock_guard guard(waiting_mutex_);
  if (waiting_count_ < waiting_.size()) waiting_[waiting_count_++] = token;
}

void CudaMemory::release_waiting() noexcept {
  const std::lock_guard guard(waiting_mutex_);
  while (waiting_count_ > 0 && driver_.release(waiting_[waiting_count_ - 1]) == CudaDriver::kSuccess) --waiting_count_;
}

std::unique_ptr<Backup> CudaMemory::make_backup() noexcept {
  return std::unique_ptr<Backup>(new (std::nothrow) PinnedBackup(driver_, context_));
}

}  // namespace mempool
