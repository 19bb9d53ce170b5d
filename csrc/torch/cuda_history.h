// What torch.cuda.memory._record_memory_history keeps, and who listens to each entry of it. Off, it costs one load.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/ApproximateClock.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/observe/block_listener.h"
#include "core/pages/arena.h"

namespace mempool::torch_cuda {

using c10::CachingDeviceAllocator::AnnotationEntry;
using c10::CachingDeviceAllocator::CreateContextFn;
using c10::CachingDeviceAllocator::RecordContext;
using c10::CachingDeviceAllocator::TraceEntry;
using Context = std::shared_ptr<c10::GatheredContext>;

class CudaHistory {
 public:
  // Whether anybody wants to hear of allocations.
  bool is_on() const noexcept { return on_.load(std::memory_order_relaxed); }
  bool is_recording() const noexcept { return recording_.load(std::memory_order_relaxed); }

  void record(bool enabled, CreateContextFn recorder, std::size_t most_entries, RecordContext when, bool clear,
              const std::vector<std::string>& skipped);
  void attach(c10::CachingDeviceAllocator::AllocatorTraceTracker tracker);
  // Another allocator gets the same trackers, and records as this one does.
  void tell(c10::cuda::CUDACachingAllocator::CUDAAllocator& to);

  // The caller's stack if entries of that level want it. Takes no lock of the allocator's.
  Context gather(RecordContext level) const;
  // `waits`: other streams use the block still, and on_completed() comes later.
  void on_alloc(int device, const ObservedBlock& block, c10::MempoolId_t pool);
  void on_free(int device, const ObservedBlock& block, c10::MempoolId_t pool, bool waits);
  void on_completed(int device, const ObservedBlock& block, c10::MempoolId_t pool);
  // A segment of a pool with an allocator of its own. Where this fails, the history has an entry less.
  void on_segment(int device, bool begins, void* address, std::size_t bytes, cudaStream_t stream,
                  c10::MempoolId_t pool) noexcept;
  void add(TraceEntry::Action action, int device, std::size_t address, std::size_t bytes, cudaStream_t stream,
           c10::MempoolId_t pool, const Context& context, const std::string& metadata);
  void annotate(const std::vector<std::pair<std::string, std::string>>& metadata, int device);

  Context context_of(const void* address);
  // Both with times in microseconds since the epoch.
  std::vector<std::vector<TraceEntry>> entries(int devices);
  std::vector<AnnotationEntry> annotations();

  static std::string& metadata();  // the calling thread's
  static std::vector<std::string>& compile_contexts();

 private:
  void update();
  Context take_context(const void* address);
  void add(TraceEntry::Action action, int device, const ObservedBlock& block, c10::MempoolId_t pool,
           const Context& context, const std::string& metadata);

  std::atomic<bool> on_{false};
  std::atomic<bool> recording_{false};
  std::atomic<CreateContextFn> recorder_{nullptr};
  std::atomic<RecordContext> when_{RecordContext::NEVER};
  c10::ApproximateClockToUnixTimeConverter clock_;  // knows only times after it was made
  std::mutex mutex_;
  std::size_t most_ = 1;  // entries a device
  std::unordered_set<int> skipped_;
  std::vector<std::string> skipped_names_;
  std::map<int, std::deque<TraceEntry>> entries_;  // by device
  std::vector<AnnotationEntry> annotations_;
  std::unordered_map<const void*, Context> contexts_;  // of live blocks, and of those that wait for other streams
  std::vector<c10::CachingDeviceAllocator::AllocatorTraceTracker> trackers_;
};

// Tells the history what happens to the blocks of one device. Where that fails, the history has an entry less.
class HistoryListener final : public BlockListener {
 public:
  HistoryListener(CudaHistory& history, int device) : history_(history), device_(device) {}
  void on_alloc(const ObservedBlock& block) noexcept override;
  void on_free(const ObservedBlock& block, bool waits) noexcept override;
  void on_completed(const ObservedBlock& block) noexcept override;

 private:
  CudaHistory& history_;
  const int device_;
};

}  // namespace mempool::torch_cuda
