#include "torch/cuda_fronts.h"

#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>

#include "core/allocator/found_block.h"
#include "torch/cuda_functions.h"
#include "torch/cuda_source_calls.h"

namespace mempool::torch_cuda {

template <typename Tell>
void Front::tell_earlier(Tell tell) {
  if (!earlier_.has_served()) return;
  if (!is_mempools_turn()) return tell(earlier_.get());
  try {
    tell(earlier_.get());
  } catch (const c10::Error&) {  // it has no such function
  }
}

// ---- blocks ------------------------------------------------------------------------------------------------------

bool Front::is_ours(const void* address) const noexcept {
  return !earlier_.has_served() || mempool::owner_of(address) != nullptr;
}

c10::DataPtr Front::allocateWithAddress(std::size_t bytes, void* address) {
  return allocate_with_address(serving_, bytes, address);
}

// torch's allocators ignore a block with another deleter than their own, or take it for theirs.
void Front::recordStream(const c10::DataPtr& block, c10::cuda::CUDAStream stream) {
  const c10::DeleterFnPtr deleter = block.get_deleter();
  if (deleter == ours_.raw_deleter()) return ours_.recordStream(block, stream);
  if (earlier_.has_served() && deleter == earlier_->raw_deleter()) earlier_->recordStream(block, stream);
}

cudaError_t Front::memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                               cudaStream_t stream, bool p2p_enabled) {
  return ours_.memcpyAsync(to, to_device, from, from_device, bytes, stream, p2p_enabled);
}

void* Front::getBaseAllocation(void* address, std::size_t* bytes) {
  return is_ours(address) ? ours_.getBaseAllocation(address, bytes) : earlier_->getBaseAllocation(address, bytes);
}

std::shared_ptr<c10::GatheredContext> Front::getContextForPointer(const void* address) {
  return is_ours(address) ? ours_.getContextForPointer(address) : context_for_pointer(earlier_.get(), address);
}

void Front::annotateMemory(const void* address, const std::string& text) {
  is_ours(address) ? ours_.annotateMemory(address, text) : annotate_memory(earlier_.get(), address, text);
}

cca::ShareableHandle Front::shareIpcHandle(void* address) {
  return is_ours(address) ? ours_.shareIpcHandle(address) : earlier_->shareIpcHandle(address);
}

std::shared_ptr<void> Front::getIpcDevPtr(std::string handle) {
  const bool is_ours = !earlier_.has_served() || CudaAllocator::is_handle(handle);
  return is_ours ? ours_.getIpcDevPtr(std::move(handle)) : earlier_->getIpcDevPtr(std::move(handle));
}

// ---- private pools -----------------------------------------------------------------------------------------------

// A pool belongs to who made it as long as anybody uses it.
bool Front::is_earliers(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return earlier_.has_served() && !ours_.knows(device, pool) && earlier_.uses(device, pool) > 0;
}

TorchAllocator& Front::owner_of_pool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return is_earliers(device, pool) ? earlier_.get() : ours_;
}

bool Front::goes_to_earlier(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return is_mempools_turn() ? is_earliers(device, pool) : !ours_.knows(device, pool);
}

void Front::beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                                std::function<bool(cudaStream_t)> filter) {
  if (!goes_to_earlier(device, pool)) return ours_.beginAllocateToPool(device, pool, std::move(filter));
  PrivatePools& routes = ours_.device_at(device).pools;
  earlier_->beginAllocateToPool(device, pool, filter);
  earlier_.count_use(device, pool, 1);  // torch calls releasePool for it
  routes.begin_elsewhere(pool, std::move(filter));
}

// The use may have begun before mempool was in place, unseen: what mempool does not know is the other's.
void Front::endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  if (!earlier_.has_served() || ours_.knows(device, pool)) return ours_.endAllocateToPool(device, pool);
  ours_.device_at(device).pools.end_elsewhere(pool);
  earlier_->endAllocateToPool(device, pool);
}

// An allocator of torch's defers frees meanwhile, whichever pool it is.
void Front::mark(c10::DeviceIndex device, bool begins) {
  tell_earlier([&](TorchAllocator& earlier) { mark_capture(earlier, device, begins); });
}

void Front::releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  if (!earlier_.has_served() || ours_.knows(device, pool)) return ours_.releasePool(device, pool);
  earlier_->releasePool(device, pool);
  earlier_.count_use(device, pool, -1);
}

int Front::getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return is_earliers(device, pool) ? earlier_.uses(device, pool) : ours_.getPoolUseCount(device, pool);
}

// Memory of mempool's is no segment of the other's: its blocks would have two owners.
void Front::createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                               std::shared_ptr<cca::CUDAAllocator> allocator) {
  const bool is_of_mempool =
      allocator != nullptr && (dynamic_cast<Front*>(allocator.get()) != nullptr || is_of_functions(*allocator));
  if (is_of_mempool) allocator = nullptr;
  const bool is_new_of_mempool = is_of_mempool && !is_earliers(device, pool);
  if (is_new_of_mempool || !goes_to_earlier(device, pool)) {
    return ours_.createOrIncrefPool(device, pool, std::move(allocator));
  }
  earlier_->createOrIncrefPool(device, pool, std::move(allocator));
  earlier_.count_use(device, pool, 1);
}

void Front::setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use_on_oom) {
  owner_of_pool(device, pool).setUseOnOOM(device, pool, use_on_oom);
}

void Front::setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) {
  owner_of_pool(device, pool).setNoSplit(device, pool);
}

bool Front::checkPoolLiveAllocations(c10::DeviceIndex device, c10::MempoolId_t pool,
                                     const std::unordered_set<void*>& expected) {
  return owner_of_pool(device, pool).checkPoolLiveAllocations(device, pool, expected);
}

std::shared_ptr<cca::AllocatorState> Front::getCheckpointState(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return owner_of_pool(device, pool).getCheckpointState(device, pool);
}

// torch goes on to exchange the deleters of these blocks, and takes those of the allocator that serves for granted.
cca::CheckpointDelta Front::setCheckpointPoolState(c10::DeviceIndex device,
                                                   std::shared_ptr<cca::AllocatorState> state) {
  const bool is_ours = !earlier_.has_served() || CudaAllocator::is_state(state.get());
  TORCH_CHECK(is_ours == is_mempools_turn(), "mempool: a private pool of ",
              is_ours ? "mempool" : "torch's own allocator", " cannot go back to a checkpoint while ", serving_.name(),
              " serves: call mempool.", is_ours ? "enable" : "disable",
              "(\"cuda\") first, or compile the model anew (torch._dynamo.reset()).");
  return serving_.setCheckpointPoolState(device, std::move(state));
}

// ---- both --------------------------------------------------------------------------------------------------------

void Front::init(int device_count) {
  ours_.init(device_count);
  if (earlier_.has_served()) earlier_.begin_serving(device_count);
}

void Front::enable(bool value) {
  ours_.enable(value);
  tell_earlier([&](TorchAllocator& earlier) { earlier.enable(value); });
}

void Front::emptyCache(c10::MempoolId_t pool) {
  ours_.emptyCache(pool);
  if (source_calls::is_inside() || !earlier_.has_served()) return;
  earlier_.empty_cache(pool);
  ours_.recount();
}

void Front::enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex to_access) {
  earlier_.enable_peer_access(device, to_access);
  ours_.enablePeerAccess(device, to_access);
}

// Of both, as either may hold memory; entries of their histories by their times, snapshots from the one that serves.
cca::SnapshotInfo Front::snapshot(c10::MempoolId_t pool, bool include_traces) {
  cca::SnapshotInfo out = ours_.snapshot(pool, include_traces);
  tell_earlier([&](TorchAllocator& earlier) {
    cca::SnapshotInfo other = earlier.snapshot(pool, include_traces);
    if (!is_mempools_turn()) std::swap(out, other);
    std::move(other.segments.begin(), other.segments.end(), std::back_inserter(out.segments));
    out.device_traces.resize(std::max(out.device_traces.size(), other.device_traces.size()));
    for (std::size_t i = 0; i < other.device_traces.size(); ++i) {
      auto& entries = out.device_traces[i];
      // Both have entered each snapshot, and it is one.
      std::copy_if(other.device_traces[i].begin(), other.device_traces[i].end(), std::back_inserter(entries),
                   [](const auto& entry) { return entry.action_ != cca::TraceEntry::SNAPSHOT; });
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return a.time_.t_ < b.time_.t_; });
    }
    std::move(other.external_annotations.begin(), other.external_annotations.end(),
              std::back_inserter(out.external_annotations));
  });
  return out;
}

void Front::recordHistory(bool enabled, cca::CreateContextFn recorder, std::size_t most_entries,
                          cca::RecordContext when, bool clear, const std::vector<std::string>& skipped) {
  ours_.recordHistory(enabled, recorder, most_entries, when, clear, skipped);
  tell_earlier(
      [&](TorchAllocator& earlier) { earlier.recordHistory(enabled, recorder, most_entries, when, clear, skipped); });
}

void Front::pushCompileContext(std::string& text) {
  ours_.pushCompileContext(text);
  tell_earlier([&](TorchAllocator& earlier) { earlier.pushCompileContext(text); });
}

void Front::popCompileContext() {
  ours_.popCompileContext();
  tell_earlier([](TorchAllocator& earlier) { earlier.popCompileContext(); });
}

void Front::setUserMetadata(const std::string& text) {
  ours_.setUserMetadata(text);
  tell_earlier([&](TorchAllocator& earlier) {
    if (!is_mempools_turn() || takes_metadata(earlier)) earlier.setUserMetadata(text);
  });
}

void Front::attachOutOfMemoryObserver(cca::OutOfMemoryObserver observer) {
  ours_.attachOutOfMemoryObserver(observer);
  tell_earlier([&](TorchAllocator& earlier) { earlier.attachOutOfMemoryObserver(observer); });
}

void Front::attachOomRejectionObserver(OomRejectionObserver observer) {
  ours_.attachOomRejectionObserver(observer);
  tell_earlier([&](TorchAllocator& earlier) { attach_rejection_observer(earlier, observer); });
}

void Front::attachAllocatorTraceTracker(cca::AllocatorTraceTracker tracker) {
  ours_.attachAllocatorTraceTracker(tracker);
  tell_earlier([&](TorchAllocator& earlier) { earlier.attachAllocatorTraceTracker(tracker); });
}

// ---- while the earlier one serves --------------------------------------------------------------------------------

template <typename Ask>
auto EarlierServes::with_room(TorchAllocator& source, Ask ask) {
  try {
    return ask(source);
  } catch (const c10::OutOfMemoryError&) {
    int captured_device = 0;
    if (!ours_.holds_memory() || ours_.is_capturing(captured_device)) throw;
  }
  ours_.emptyCache({0, 0});
  return ask(source);
}

c10::DataPtr EarlierServes::allocate(std::size_t bytes) {
  return with_room(source(), [bytes](TorchAllocator& source) { return source.allocate(bytes); });
}

void* EarlierServes::raw_alloc(std::size_t bytes) {
  return with_room(source(), [bytes](TorchAllocator& source) { return source.raw_alloc(bytes); });
}

void* EarlierServes::raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) {
  return with_room(source(stream), [=](TorchAllocator& source) { return source.raw_alloc_with_stream(bytes, stream); });
}

TorchAllocator& EarlierServes::source() { return source(c10::cuda::getCurrentCUDAStream()); }

TorchAllocator& EarlierServes::source(cudaStream_t stream) {
  return ours_.is_routed(stream) ? static_cast<TorchAllocator&>(ours_) : earlier_.get();
}

}  // namespace mempool::torch_cuda
