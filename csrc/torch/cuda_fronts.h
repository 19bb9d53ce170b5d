// What torch has for its CUDA allocator once mempool was enabled: one of two objects, over mempool's own and the one
// before it. Both know what either gave, by its address, its private pool or its deleter, and hand each call to whose
// it is; they differ in who serves what is new. A switch replaces one object by the other, and so may come in the midst
// of other threads' calls.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "torch/cuda_allocator.h"
#include "torch/cuda_earlier.h"
#include "torch/cuda_interface.h"

namespace mempool::torch_cuda {

class Front : public CudaInterface {
 public:
  // `serving`: one of the two.
  Front(CudaAllocator& ours, Earlier& earlier, TorchAllocator& serving)
      : ours_(ours), earlier_(earlier), serving_(serving) {}

  // ---- blocks, by their address
  c10::DeleterFnPtr raw_deleter() const override { return serving_.raw_deleter(); }
  void raw_delete(void* address) override { ours_.raw_delete(address); }
  c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) override;
  void recordStream(const c10::DataPtr& block, c10::cuda::CUDAStream stream) override;
  void copy_data(void* to, const void* from, std::size_t bytes) const override { ours_.copy_data(to, from, bytes); }
  cudaError_t memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                          cudaStream_t stream, bool p2p_enabled) override;
  void* getBaseAllocation(void* address, std::size_t* bytes) override;
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) override;
  void annotateMemory(const void* address, const std::string& text) override;
  cca::ShareableHandle shareIpcHandle(void* address) override;
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override;

  // ---- private pools, by their ids
  void beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                           std::function<bool(cudaStream_t)> filter) override;
  void endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  void markCaptureBegin(c10::DeviceIndex device) override { mark(device, true); }
  void markCaptureEnd(c10::DeviceIndex device) override { mark(device, false); }
  void releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  int getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  void createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                          std::shared_ptr<cca::CUDAAllocator> allocator) override;
  void setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use_on_oom) override;
  void setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  bool checkPoolLiveAllocations(c10::DeviceIndex device, c10::MempoolId_t pool,
                                const std::unordered_set<void*>& expected) override;
  std::shared_ptr<cca::AllocatorState> getCheckpointState(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  cca::CheckpointDelta setCheckpointPoolState(c10::DeviceIndex device,
                                              std::shared_ptr<cca::AllocatorState> state) override;

  // ---- both
  void init(int device_count) override;
  bool initialized() override { return ours_.initialized(); }
  void enable(bool value) override;
  void emptyCache(c10::MempoolId_t pool) override;
  void enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex to_access) override;
  cca::SnapshotInfo snapshot(c10::MempoolId_t pool, bool include_traces) override;
  void recordHistory(bool enabled, cca::CreateContextFn recorder, std::size_t most_entries, cca::RecordContext when,
                     bool clear, const std::vector<std::string>& skipped) override;
  void pushCompileContext(std::string& text) override;
  void popCompileContext() override;
  void setUserMetadata(const std::string& text) override;
  void attachOutOfMemoryObserver(cca::OutOfMemoryObserver observer) override;
  void attachOomRejectionObserver(OomRejectionObserver observer) override;
  void attachAllocatorTraceTracker(cca::AllocatorTraceTracker tracker) override;

  // ---- the one that serves: its own figures, its own limits
  std::string name() override { return serving_.name(); }
  bool isEnabled() const override { return serving_.isEnabled(); }
  double getMemoryFraction(c10::DeviceIndex device) override { return serving_.getMemoryFraction(device); }
  void setMemoryFraction(double fraction, c10::DeviceIndex device) override {
    serving_.setMemoryFraction(fraction, device);
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    return serving_.getDeviceStats(device);
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override { serving_.resetAccumulatedStats(device); }
  void resetPeakStats(c10::DeviceIndex device) override { serving_.resetPeakStats(device); }
  void cacheInfo(c10::DeviceIndex device, std::size_t* largest_block) override {
    serving_.cacheInfo(device, largest_block);
  }
  std::vector<cca::StreamSegmentSize> getExpandableSegmentSizes(c10::DeviceIndex device) override {
    return serving_.getExpandableSegmentSizes(device);
  }
  bool isHistoryEnabled() override { return serving_.isHistoryEnabled(); }
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata) override {
    serving_.recordAnnotation(metadata);
  }
  bool supportsUserMetadata() override { return takes_metadata(serving_); }
  std::string getUserMetadata() override { return serving_.getUserMetadata(); }

 protected:
  CudaAllocator& ours_;
  Earlier& earlier_;

 private:
  bool is_mempools_turn() const noexcept { return &serving_ == &ours_; }
  // An address of mempool's, or of nobody's.
  bool is_ours(const void* address) const noexcept;
  bool is_earliers(c10::DeviceIndex device, c10::MempoolId_t pool);
  TorchAllocator& owner_of_pool(c10::DeviceIndex device, c10::MempoolId_t pool);
  bool goes_to_earlier(c10::DeviceIndex device, c10::MempoolId_t pool);  // a new one as well
  void mark(c10::DeviceIndex device, bool begins);
  // What both are told. The one that does not serve may be of a kind that refuses it.
  template <typename Tell>
  void tell_earlier(Tell tell);

  TorchAllocator& serving_;
};

class MempoolServes final : public Front {
 public:
  MempoolServes(CudaAllocator& ours, Earlier& earlier) : Front(ours, earlier, ours) {}
  c10::DataPtr allocate(std::size_t bytes) override { return ours_.allocate(bytes); }
  void* raw_alloc(std::size_t bytes) override { return ours_.raw_alloc(bytes); }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    return ours_.raw_alloc_with_stream(bytes, stream);
  }
};

class EarlierServes final : public Front {
 public:
  EarlierServes(CudaAllocator& ours, Earlier& earlier) : Front(ours, earlier, earlier.get()) {}
  c10::DataPtr allocate(std::size_t bytes) override;
  void* raw_alloc(std::size_t bytes) override;
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override;

 private:
  // Asks the source; once more when there is no memory, with what mempool keeps given back to the device.
  template <typename Ask>
  auto with_room(TorchAllocator& source, Ask ask);
  // Threads and captures may still be in a private pool of mempool's.
  TorchAllocator& source();
  TorchAllocator& source(cudaStream_t stream);
};

}  // namespace mempool::torch_cuda
