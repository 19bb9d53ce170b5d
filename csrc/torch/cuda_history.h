// What torch.cuda.memory._record_memory_history keeps, and who listens to each entry of it. Off, it costs one load.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

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

  // The caller's stack if entries of that level want it. Takes no lock of the allocator's.
  Context gather(RecordContext level) const;
  void on_alloc(int device, void* address, std::size_t bytes, cudaStream_t stream, c10::MempoolId_t pool,
                const Context& context);
  // `completed`: the memory is free at once; else on_completed() comes later.
  void on_free(int device, void* address, std::size_t bytes, cudaStream_t stream, c10::MempoolId_t pool,
               bool completed);
  void on_completed(int device, void* address, std::size_t bytes, cudaStream_t stream, c10::MempoolId_t pool);
  void add(TraceEntry::Action action, int device, std::size_t address, std::size_t bytes, cudaStream_t stream,
           c10::MempoolId_t pool, const Context& context, const std::string& metadata);
  void annotate(const std::vector<std::pair<std::string, std::string>>& metadata, int device);

  Context context_of(const void* address);
  std::vector<std::vector<TraceEntry>> entries(int devices);
  std::vector<AnnotationEntry> annotations();

  static std::string& metadata();  // the calling thread's
  static std::vector<std::string>& compile_contexts();

 private:
  void update();

  std::atomic<bool> on_{false};
  std::atomic<bool> recording_{false};
  std::atomic<CreateContextFn> recorder_{nullptr};
  std::atomic<RecordContext> when_{RecordContext::NEVER};
  std::mutex mutex_;
  std::size_t most_ = 1;
  std::unordered_set<int> skipped_;
  std::deque<TraceEntry> entries_;
  std::vector<AnnotationEntry> annotations_;
  std::unordered_map<const void*, Context> contexts_;  // of live blocks
  std::vector<c10::CachingDeviceAllocator::AllocatorTraceTracker> trackers_;
};

}  // namespace mempool::torch_cuda
