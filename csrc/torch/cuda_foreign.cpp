#include "torch/cuda_foreign.h"

#include <c10/cuda/CUDAGuard.h>

#include <cstdint>
#include <exception>
#include <new>
#include <utility>

#include "common/align.h"
#include "core/allocator/found_block.h"

namespace mempool::torch_cuda {
namespace {

// The device is current, and a stream that is captured does not forbid what the source calls. Throws c10::Error.
class SourceScope {
 public:
  explicit SourceScope(int device) : guard_(static_cast<c10::DeviceIndex>(device)) {
    C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_));
  }
  SourceScope(const SourceScope&) = delete;
  SourceScope& operator=(const SourceScope&) = delete;
  ~SourceScope() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  const c10::cuda::CUDAGuard guard_;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool is_aligned(const void* address, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

}  // namespace

ForeignMemory::ForeignMemory(std::shared_ptr<Source> source, int device, cudaStream_t stream, Observer observer)
    : source_(std::move(source)), device_(device), stream_(stream), observer_(std::move(observer)) {}

void* ForeignMemory::reserve(std::size_t bytes) noexcept {
  const std::lock_guard guard(mutex_);
  last_refusal_.clear();
  void* given = ask(bytes + slack_);
  if (given != nullptr && slack_ == 0 && !is_aligned(given, kGranule)) {
    if (!give_back(given)) return nullptr;
    slack_ = kGranule;
    given = ask(bytes + slack_);
  }
  if (given == nullptr) return nullptr;
  const auto start = align_up(reinterpret_cast<std::uintptr_t>(given), kGranule);
  void* const address = reinterpret_cast<void*>(start);  // NOLINT(performance-no-int-to-ptr)
  try {
    given_.emplace(address, given);
  } catch (const std::bad_alloc&) {
    give_back(given);
    return nullptr;
  }
  return address;
}

void ForeignMemory::unreserve(void* address, std::size_t) noexcept {
  const std::lock_guard guard(mutex_);
  const auto found = given_.find(address);
  if (found == given_.end() || !give_back(found->second)) return;
  given_.erase(found);
}

bool ForeignMemory::commit(void* address, std::size_t bytes, Handle& out) noexcept {
  out = {address, bytes, 0};
  observer_(true, address, bytes, stream_);
  return true;
}

bool ForeignMemory::decommit(const Handle& handle) noexcept {
  // Whoever has registered the segment with a network hears of its end before it ends.
  observer_(false, handle.address, handle.bytes, stream_);
  const std::lock_guard guard(mutex_);
  const auto found = given_.find(handle.address);
  if (found == given_.end() || !give_back(found->second)) {
    observer_(true, handle.address, handle.bytes, stream_);
    return false;
  }
  given_.erase(found);
  return true;
}

std::string ForeignMemory::last_refusal() const {
  const std::lock_guard guard(mutex_);
  return last_refusal_;
}

// ---- the source --------------------------------------------------------------------------------------------------

void* ForeignMemory::ask(std::size_t bytes) noexcept {
  try {
    const SourceScope scope(device_);
    void* const given = source_->raw_alloc_with_stream(bytes, stream_);
    // The page map has one entry for a page: memory of a block of mempool's own cannot be a segment as well.
    if (given != nullptr && owner_of(given) == nullptr) return given;
    if (given != nullptr) {
      give_back(given);
      refuse("it gives memory that mempool manages already");
    }
  } catch (const std::exception& error) {
    refuse(error.what());
  } catch (...) {
    refuse("it threw something that is no std::exception");
  }
  (void)cudaGetLastError();  // what the source has met is not the next caller's error
  return nullptr;
}

// False: the source threw, and so has not taken it.
bool ForeignMemory::give_back(void* given) noexcept {
  try {
    const SourceScope scope(device_);
    source_->raw_delete(given);
    return true;
  } catch (...) {
    (void)cudaGetLastError();
    return false;
  }
}

void ForeignMemory::refuse(const std::string& why) noexcept {
  try {
    last_refusal_ = why;
  } catch (const std::bad_alloc&) {  // then it has said nothing
  }
}

}  // namespace mempool::torch_cuda
