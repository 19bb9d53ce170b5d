#include "torch/cuda_history.h"

#include <utility>

namespace mempool::torch_cuda {

std::string& CudaHistory::metadata() {
  static thread_local std::string text;
  return text;
}

std::vector<std::string>& CudaHistory::compile_contexts() {
  static thread_local std::vector<std::string> stack;
  return stack;
}

void CudaHistory::update() { on_.store(recording_.load() || !trackers_.empty()); }

void CudaHistory::record(bool enabled, CreateContextFn recorder, std::size_t most_entries, RecordContext when,
                         bool clear, const std::vector<std::string>& skipped) {
  TORCH_CHECK(when == RecordContext::NEVER || recorder != nullptr, "stacks are wanted, but nothing that gathers them");
  std::unordered_set<int> skip;
  for (const std::string& action : skipped) skip.insert(c10::CachingDeviceAllocator::parseTraceEntryAction(action));
  const std::lock_guard guard(mutex_);
  recorder_.store(enabled ? recorder : nullptr);
  when_.store(enabled ? when : RecordContext::NEVER);
  most_ = std::max<std::size_t>(1, most_entries);
  skipped_ = std::move(skip);
  skipped_names_ = skipped;
  recording_.store(enabled);
  if (!enabled || clear) {
    entries_.clear();
    annotations_.clear();
  }
  if (!enabled) contexts_.clear();
  for (auto& [device, entries] : entries_) {
    while (entries.size() > most_) entries.pop_front();
  }
  update();
}

void CudaHistory::attach(c10::CachingDeviceAllocator::AllocatorTraceTracker tracker) {
  const std::lock_guard guard(mutex_);
  trackers_.push_back(std::move(tracker));
  update();
}

void CudaHistory::tell(c10::cuda::CUDACachingAllocator::CUDAAllocator& to) {
  const std::lock_guard guard(mutex_);
  for (const auto& tracker : trackers_) to.attachAllocatorTraceTracker(tracker);
  if (is_recording()) to.recordHistory(true, recorder_.load(), most_, when_.load(), false, skipped_names_);
}

Context CudaHistory::gather(RecordContext level) const {
  if (when_.load(std::memory_order_relaxed) < level) return nullptr;
  const CreateContextFn recorder = recorder_.load(std::memory_order_acquire);
  return recorder != nullptr ? recorder() : nullptr;
}

void CudaHistory::add(TraceEntry::Action action, int device, std::size_t address, std::size_t bytes,
                      cudaStream_t stream, c10::MempoolId_t pool, const Context& context, const std::string& metadata) {
  if (!is_on()) return;
  const std::vector<std::string>& compiling = compile_contexts();
  TraceEntry entry(action, static_cast<c10::DeviceIndex>(device), address, bytes, stream, pool,
                   c10::getApproximateTime(), when_.load() >= RecordContext::ALLOC ? context : nullptr,
                   compiling.empty() ? "" : compiling.back(), metadata);
  const std::lock_guard guard(mutex_);
  for (const auto& tracker : trackers_) tracker(entry);
  if (!is_recording() || skipped_.contains(action)) return;
  std::deque<TraceEntry>& entries = entries_[device];
  entries.push_back(std::move(entry));
  if (entries.size() > most_) entries.pop_front();
}

void CudaHistory::add(TraceEntry::Action action, int device, const ObservedBlock& block, c10::MempoolId_t pool,
                      const Context& context, const std::string& metadata) {
  add(action, device, reinterpret_cast<std::size_t>(block.address), block.size.rounded,
      reinterpret_cast<cudaStream_t>(block.stream), pool, context, metadata);  // NOLINT
}

void CudaHistory::on_alloc(int device, const ObservedBlock& block, c10::MempoolId_t pool) {
  const Context context = gather(RecordContext::STATE);
  if (context != nullptr) {
    const std::lock_guard guard(mutex_);
    contexts_[block.address] = context;
  }
  add(TraceEntry::ALLOC, device, block, pool, context, metadata());
}

void CudaHistory::on_free(int device, const ObservedBlock& block, c10::MempoolId_t pool, bool waits) {
  const Context freed_by = gather(RecordContext::ALL);
  const Context made_by = take_context(block.address);
  const Context& context = freed_by != nullptr ? freed_by : made_by;
  add(TraceEntry::FREE_REQUESTED, device, block, pool, context, metadata());
  if (!waits) return add(TraceEntry::FREE_COMPLETED, device, block, pool, context, metadata());
  if (context == nullptr) return;
  const std::lock_guard guard(mutex_);
  contexts_[block.address] = context;
}

void CudaHistory::on_completed(int device, const ObservedBlock& block, c10::MempoolId_t pool) {
  add(TraceEntry::FREE_COMPLETED, device, block, pool, take_context(block.address), "");
}

Context CudaHistory::take_context(const void* address) {
  const std::lock_guard guard(mutex_);
  auto found = contexts_.extract(address);
  return found.empty() ? nullptr : std::move(found.mapped());
}

void CudaHistory::on_segment(int device, bool begins, void* address, std::size_t bytes, cudaStream_t stream,
                             c10::MempoolId_t pool) noexcept {
  try {
    add(begins ? TraceEntry::SEGMENT_ALLOC : TraceEntry::SEGMENT_FREE, device, reinterpret_cast<std::size_t>(address),
        bytes, stream, pool, nullptr, "");
  } catch (const std::exception&) {
  }
}

void CudaHistory::annotate(const std::vector<std::pair<std::string, std::string>>& metadata, int device) {
  if (!is_recording()) return;
  AnnotationEntry entry(static_cast<c10::DeviceIndex>(device), c10::getApproximateTime());
  for (const auto& [name, value] : metadata) entry.recordUserMetadata(name, value);
  const std::lock_guard guard(mutex_);
  annotations_.push_back(std::move(entry));
}

Context CudaHistory::context_of(const void* address) {
  const std::lock_guard guard(mutex_);
  const auto found = contexts_.find(address);
  return found != contexts_.end() ? found->second : nullptr;
}

std::vector<std::vector<TraceEntry>> CudaHistory::entries(int devices) {
  std::vector<std::vector<TraceEntry>> out(static_cast<std::size_t>(devices));
  const std::lock_guard guard(mutex_);
  const auto to_ns = clock_.makeConverter();
  for (const auto& [device, entries] : entries_) {
    if (device < 0 || device >= devices) continue;
    std::vector<TraceEntry>& copies = out[static_cast<std::size_t>(device)];
    copies.assign(entries.begin(), entries.end());
    for (TraceEntry& entry : copies) entry.time_.t_ = to_ns(entry.time_.approx_t_) / 1000;
  }
  return out;
}

std::vector<AnnotationEntry> CudaHistory::annotations() {
  const std::lock_guard guard(mutex_);
  const auto to_ns = clock_.makeConverter();
  std::vector<AnnotationEntry> out = annotations_;
  for (AnnotationEntry& entry : out) entry.time_.t_ = to_ns(entry.time_.approx_t_) / 1000;
  return out;
}

// ---- the blocks of one device ------------------------------------------------------------------------------------

void HistoryListener::on_alloc(const ObservedBlock& block) noexcept {
  try {
    history_.on_alloc(device_, block, block.family->framework_id);
  } catch (const std::exception&) {  // an entry less
  }
}

void HistoryListener::on_free(const ObservedBlock& block, bool waits) noexcept {
  try {
    history_.on_free(device_, block, block.family->framework_id, waits);
  } catch (const std::exception&) {  // an entry less
  }
}

void HistoryListener::on_completed(const ObservedBlock& block) noexcept {
  try {
    history_.on_completed(device_, block, block.family->framework_id);
  } catch (const std::exception&) {  // an entry less
  }
}

}  // namespace mempool::torch_cuda
