// torch's allocator of CUDA memory (the whole of its CUDAAllocator interface), over one CachingAllocator for each
// device.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda_device.h"
#include "core/allocator/caching_allocator.h"
#include "torch/cuda_earlier.h"
#include "torch/cuda_history.h"
#include "torch/cuda_interface.h"
#include "torch/cuda_pools.h"

namespace mempool::torch_cuda {

class CudaAllocator final : public CudaInterface {
 public:
  // `conf`: options of every device, as in MEMPOOL_CONF; percentages are of what the device has. `earlier`: whose is
  // what is not mempool's.
  CudaAllocator(std::string conf, Earlier& earlier) : conf_(std::move(conf)), earlier_(earlier) {}

  // Of devices that are made from now on.
  void set_conf(const std::string& conf) {
    const std::lock_guard guard(making_);
    conf_ = conf;
  }

  // ---- blocks
  c10::DataPtr allocate(std::size_t bytes) override;
  c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void* raw_alloc(std::size_t bytes) override;
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override;
  void raw_delete(void* address) override;
  void* allocate_on(int device, std::size_t bytes, cudaStream_t stream);
  void recordStream(const c10::DataPtr& block, c10::cuda::CUDAStream stream) override;
  void use_on(void* address, c10::cuda::CUDAStream stream);
  void copy_data(void* to, const void* from, std::size_t bytes) const override;
  cudaError_t memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                          cudaStream_t stream, bool p2p_enabled) override;
  // Whether a block of the stream, of the device that is current, would go to a private pool of mempool's.
  bool is_routed(cudaStream_t stream);

  // ---- the devices
  void init(int device_count) override;
  bool initialized() override { return device_count_.load() > 0; }
  void enable(bool value) override { is_caching_.store(value); }
  bool isEnabled() const override { return is_caching_.load(); }
  double getMemoryFraction(c10::DeviceIndex device) override;
  void setMemoryFraction(double fraction, c10::DeviceIndex device) override;
  void set_memory_fractions(double fraction);  // of each device that is made
  void emptyCache(c10::MempoolId_t pool) override;
  void enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex to_access) override;
  std::string name() override { return "mempool"; }

  // ---- reading
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override;
  void resetAccumulatedStats(c10::DeviceIndex device) override;
  void resetPeakStats(c10::DeviceIndex device) override;
  void cacheInfo(c10::DeviceIndex device, std::size_t* largest_block) override;
  void* getBaseAllocation(void* address, std::size_t* bytes) override;
  std::vector<cca::StreamSegmentSize> getExpandableSegmentSizes(c10::DeviceIndex device) override;
  cca::SnapshotInfo snapshot(c10::MempoolId_t pool, bool include_traces) override;

  // ---- private pools and captured graphs
  void beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                           std::function<bool(cudaStream_t)> filter) override;
  void markCaptureBegin(c10::DeviceIndex) override {}
  void markCaptureEnd(c10::DeviceIndex) override {}
  void endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) override;
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
  static bool is_state(const cca::AllocatorState* state);  // that getCheckpointState returned
  bool knows(c10::DeviceIndex device, c10::MempoolId_t pool);

  // ---- other processes
  cca::ShareableHandle shareIpcHandle(void* address) override;
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override;
  static bool is_handle(const std::string& text);  // that shareIpcHandle has made, in whichever process

  // ---- history
  bool isHistoryEnabled() override { return history_.is_recording(); }
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) override;
  void recordHistory(bool enabled, cca::CreateContextFn recorder, std::size_t most_entries, cca::RecordContext when,
                     bool clear, const std::vector<std::string>& skipped) override;
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata) override;
  void pushCompileContext(std::string& text) override;
  void popCompileContext() override;
  bool supportsUserMetadata() override { return true; }
  void setUserMetadata(const std::string& text) override { CudaHistory::metadata() = text; }
  std::string getUserMetadata() override { return CudaHistory::metadata(); }
  void annotateMemory(const void* address, const std::string& text) override;
  void attachOutOfMemoryObserver(cca::OutOfMemoryObserver observer) override;
  void attachOomRejectionObserver(OomRejectionObserver observer) override;
  void attachAllocatorTraceTracker(cca::AllocatorTraceTracker tracker) override;
  // Attaches to another allocator what was attached here, and has it record a history if this one does.
  void tell_observers(TorchAllocator& to);

  // What the rest of mempool knows a torch device by. Throws c10::Error for one that does not exist.
  struct Device {
    Device(CachingAllocator& core_in, CudaHistory& history, int index)
        : core(core_in),
          pools(core_in, index,
                [&history, index](bool begins, void* address, std::size_t bytes, cudaStream_t stream,
                                  c10::MempoolId_t pool) {
                  history.on_segment(index, begins, address, bytes, stream, pool);
                }),
          listener(history, index) {}
    CachingAllocator& core;
    PrivatePools pools;
    HistoryListener listener;
  };
  // Made at its first use.
  Device& device_at(int device);
  Device* find_device(int device) const noexcept {
    return device >= 0 && device < kMaxCudaDevices ? devices_[static_cast<std::size_t>(device)].load() : nullptr;
  }
  int device_count() const noexcept { return device_count_.load(); }  // that torch sees; 0: it has not looked yet
  // What the earlier allocator holds counts from now on: it has served.
  void adopt_devices();
  void recount() noexcept;    // as it is now
  bool holds_memory() const;  // of any device
  // Whether a graph is being captured into any private pool, or in a stream whose blocks go to one. `device`: where.
  bool is_capturing(int& device);

 private:
  // Each device that is made, with its number.
  template <typename Action>
  void for_each_device(Action action) const {
    for (int i = 0; i < device_count_.load(); ++i) {
      if (Device* const device = find_device(i)) action(i, *device);
    }
  }
  // The number of the device that the allocator is of; -1: none that torch has used.
  int number_of(const CachingAllocator* core) const noexcept {
    int found = -1;
    for_each_device([&](int i, const Device& device) { found = &device.core == core ? i : found; });
    return found;
  }
  static bool relieve(CachingAllocator& core) noexcept;
  static std::size_t earlier_bytes(CachingAllocator& core) noexcept;
  void adopt_device(int index, Device& device);
  void* allocate_any(Device& device, std::size_t bytes, cudaStream_t stream, const PrivatePool* pool);
  void* allocate_slow(int index, std::size_t bytes, cudaStream_t stream);
  // `pool`: that was asked; nullptr: none of torch's.
  [[noreturn]] void report_out_of_memory(int index, std::size_t bytes, cudaStream_t stream, const PrivatePool* pool,
                                         const OutOfMemory& error);
  void free_slow(void* address);
  void free_now(void* address);
  void free_postponed();
  void report_to_profiler(int index, void* address, std::int64_t bytes);
  void note_mapping(int device, bool mapped, void* address, std::size_t bytes);
  void update_listeners();
  cca::SnapshotInfo picture(c10::MempoolId_t pool);
  friend void observe_mapping(int, bool, void*, std::size_t) noexcept;

  std::string conf_;  // guarded by making_
  Earlier& earlier_;
  std::mutex making_;
  std::array<std::atomic<Device*>, kMaxCudaDevices> devices_{};  // immortal
  std::atomic<int> device_count_{0};                             // that torch sees
  std::atomic<bool> is_caching_{true};
  CudaHistory history_;
  std::mutex observers_mutex_;
  std::vector<cca::OutOfMemoryObserver> oom_observers_;
};

// The process's CudaAllocator, which lives to its end; nullptr before mempool was enabled for the first time.
CudaAllocator* installed() noexcept;
// Once, of an immortal one.
void set_installed(CudaAllocator& allocator);
// What a fraction of a device's memory comes to as a limit; 1: none.
std::size_t limit_of_fraction(int device, double fraction);
// Throws c10::Error where the calling thread is in a call of the allocator of a MemPool: mempool's locks are held.
void refuse_within_source();
// Whether this process is a forked child, which cannot use CUDA: its requests are refused, its frees ignored.
bool is_forked_child() noexcept;

}  // namespace mempool::torch_cuda
