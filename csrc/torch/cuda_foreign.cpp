#include "torch/cuda_foreign.h"

#include <exception>
#include <new>
#include <utility>

#include "core/allocator/found_block.h"
#include "torch/cuda_source_calls.h"

namespace mempool::torch_cuda {
ForeignMemory::ForeignMemory(std::shared_ptr<Source> source, int device, cudaStream_t stream, Observer observer)
    : source_(std::move(source)), device_(device), stream_(stream), observer_(std::move(observer)) {}

void ForeignMemory::observe(bool begins, void* address, std::size_t bytes) noexcept {
  observer_(begins, address, bytes, stream_);
}

void* ForeignMemory::ask(std::size_t bytes) noexcept {
  last_refusal_.clear();
  try {
    const SourceCall call(device_);
    void* const given = source_->raw_alloc_with_stream(bytes, stream_);
    if (given != nullptr && overlaps(given, bytes)) {  // not given back: that would end the segment
      refuse("it gives memory that it has given already");
      return nullptr;
    }
    // The page map has one entry for a page: memory of a live block cannot be a segment as well.
    if (given != nullptr && owner_of(given) == nullptr) return given;
    if (given != nullptr) {
      give_back(given, bytes);
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
bool ForeignMemory::give_back(void* given, std::size_t) noexcept {
  try {
    const SourceCall call(device_);
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
