#include "backend/cuda_import.h"

#include "backend/cuda_driver.h"

namespace mempool {
namespace {

constexpr int kFileDescriptor = 1;  // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

class Imported {
 public:
  Imported(const CudaDriver& driver, void* context, int device) : driver_(driver), context_(context), device_(device) {}
  Imported(const Imported&) = delete;
  Imported& operator=(const Imported&) = delete;
  ~Imported() {
    const CudaScope scope(driver_, context_);
    if (CudaDriver::is_forked()) return;
    // Kernels that read the memory may still run.
    if (mapped_ > 0 && driver_.context_synchronize() != CudaDriver::kSuccess) return;
    if (mapped_ > 0) driver_.unmap(start_, mapped_);
    if (reserved_ > 0) driver_.unreserve(start_, reserved_);
  }

  bool map(const std::vector<ImportedPiece>& pieces) {
    const CudaScope scope(driver_, context_);
    std::size_t bytes = 0;
    for (const ImportedPiece& piece : pieces) bytes += piece.bytes;
    if (!scope.is_entered() || driver_.reserve(&start_, bytes, 0, 0, 0) != CudaDriver::kSuccess) return false;
    reserved_ = bytes;
    for (const ImportedPiece& piece : pieces) {
      CudaDriver::Token token = 0;
      auto* const descriptor = reinterpret_cast<void*>(static_cast<std::intptr_t>(piece.descriptor));  // NOLINT
      if (driver_.import_handle(&token, descriptor, kFileDescriptor) != CudaDriver::kSuccess) return false;
      const bool mapped = driver_.map(start_ + mapped_, piece.bytes, 0, token, 0) == CudaDriver::kSuccess;
      driver_.release(token);  // the mapping keeps the memory
      if (!mapped) return false;
      mapped_ += piece.bytes;
    }
    CudaDriver::Access access;
    access.location.id = device_;
    return driver_.set_access(start_, mapped_, &access, 1) == CudaDriver::kSuccess;
  }
  void* address() const { return reinterpret_cast<void*>(start_); }  // NOLINT(performance-no-int-to-ptr)

 private:
  const CudaDriver& driver_;
  void* const context_;
  const int device_;
  CudaDriver::Address start_ = 0;
  std::size_t reserved_ = 0;
  std::size_t mapped_ = 0;
};

}  // namespace

std::shared_ptr<void> cuda_import(int ordinal, const std::vector<ImportedPiece>& pieces) {
  const CudaDriver* const driver = CudaDriver::instance();
  int device = 0;
  void* context = nullptr;
  if (driver == nullptr || driver->device_get(&device, ordinal) != CudaDriver::kSuccess ||
      driver->context_retain(&context, device) != CudaDriver::kSuccess) {
    return nullptr;
  }
  auto imported = std::make_shared<Imported>(*driver, context, device);
  if (!imported->map(pieces)) return nullptr;
  return {imported, imported->address()};
}

}  // namespace mempool
