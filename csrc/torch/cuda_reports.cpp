// What torch asks about the allocator: statistics, sizes, snapshots, history.
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/util/ApproximateClock.h>

#include <algorithm>

#include "core/allocator/found_block.h"
#include "torch/cuda_allocator.h"
#include "torch/cuda_stats.h"

namespace mempool::torch_cuda {
namespace {

using TorchStats = c10::CachingDeviceAllocator::DeviceStats;
using c10::CachingDeviceAllocator::BlockInfo;
using c10::CachingDeviceAllocator::SegmentInfo;

cudaStream_t stream_of(StreamId id) { return reinterpret_cast<cudaStream_t>(id); }  // NOLINT

}  // namespace

TorchStats CudaAllocator::getDeviceStats(c10::DeviceIndex index) {
  refuse_within_source();
  free_postponed();
  TorchStats out;
  Device* const found = find_device(index);
  if (found == nullptr && index >= 0 && index < device_count_.load()) return out;  // nothing was asked of it yet
  Device& device = found != nullptr ? *found : device_at(index);
  const DeviceStats stats = device.core.stats();
  out.allocation = to_torch(stats.blocks, &BlockStats::count);
  out.active = to_torch(stats.active, &BlockStats::count);
  out.allocated_bytes = to_torch(stats.blocks, &BlockStats::bytes);
  out.active_bytes = to_torch(stats.active, &BlockStats::bytes);
  out.requested_bytes = to_torch(stats.blocks, &BlockStats::requested);
  out.segment = to_torch(stats.segments);
  out.reserved_bytes = to_torch(stats.reserved_bytes);
  out.inactive_split = to_torch(stats.free_ranges.count);
  out.inactive_split_bytes = to_torch(stats.free_ranges.bytes);
  for (const auto& [id, reserved] : device.pools.reserved()) {
    set_reserved_by_pool(out, id, to_torch(device.core.ledger().read(*reserved)));
  }
  out.num_alloc_retries = stats.alloc_retries;
  out.num_ooms = stats.ooms();
  out.num_device_alloc = stats.commits;
  out.num_device_free = stats.decommits;
  out.max_split_size = -1;
  return out;
}

void CudaAllocator::resetAccumulatedStats(c10::DeviceIndex index) {
  Device& device = device_at(index);
  device.core.reset_sums();
  device.pools.reset(Stat::reset_sum);
}

void CudaAllocator::resetPeakStats(c10::DeviceIndex index) {
  Device& device = device_at(index);
  device.core.reset_peaks();
  device.pools.reset(Stat::reset_peak);
}

double CudaAllocator::getMemoryFraction(c10::DeviceIndex device) {
  const std::size_t limit = device_at(device).core.ledger().limit();
  const auto total = static_cast<double>(cuda_device_bytes(device));
  return limit == kNoLimit ? 1.0 : std::min(1.0, static_cast<double>(limit) / total);
}

// As torch has it: more than that may be held at the moment; then nothing more is.
void CudaAllocator::setMemoryFraction(double fraction, c10::DeviceIndex device) {
  TORCH_CHECK(fraction >= 0 && fraction <= 1, "invalid fraction: ", fraction, ". Please set within [0, 1].");
  device_at(device).core.ledger().force_limit(limit_of_fraction(device, fraction));
}

void CudaAllocator::set_memory_fractions(double fraction) {
  const std::lock_guard guard(making_);
  for_each_device([&](int i, Device&) { setMemoryFraction(fraction, static_cast<c10::DeviceIndex>(i)); });
}

void CudaAllocator::cacheInfo(c10::DeviceIndex index, std::size_t* largest_block) {
  Device& device = device_at(index);
  std::size_t free = 0;
  std::size_t total = 0;
  const c10::cuda::CUDAGuard guard(index);
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  *largest_block = std::max({*largest_block, free, device.core.arenas().largest_free()});
}

void* CudaAllocator::getBaseAllocation(void* address, std::size_t* bytes) {
  const BackedRange range = backed_range_of(address);
  TORCH_CHECK(range.address != nullptr, "invalid device pointer: ", address);
  if (bytes != nullptr) *bytes = range.bytes;
  return range.address;
}

std::vector<cca::StreamSegmentSize> CudaAllocator::getExpandableSegmentSizes(c10::DeviceIndex index) {
  std::vector<cca::StreamSegmentSize> out;
  for (const SnapshotSegment& segment : device_at(index).core.snapshot().segments) {
    out.emplace_back(stream_of(segment.stream), false, segment.bytes);
  }
  return out;
}

// ---- snapshots ---------------------------------------------------------------------------------------------------

cca::SnapshotInfo CudaAllocator::picture(c10::MempoolId_t wanted) {
  refuse_within_source();
  free_postponed();
  cca::SnapshotInfo out;
  for_each_device([&](int i, Device& device) {
    const Snapshot taken = device.core.snapshot();
    for (const SnapshotSegment& segment : taken.segments) {
      const c10::MempoolId_t pool = segment.framework_id;
      if (wanted != c10::MempoolId_t{0, 0} && pool != wanted) continue;
      SegmentInfo info;
      info.device = static_cast<c10::DeviceIndex>(i);
      info.address = segment.address;
      info.total_size = segment.bytes;
      info.stream = stream_of(segment.stream);
      info.is_expandable = segment.is_of_device && cuda_manages_virtual_memory(i);
      info.owner_private_pool_id = pool;
      info.is_large = segment.sums.is_large;
      info.requested_size = segment.sums.requested;
      info.allocated_size = segment.sums.allocated;
      info.active_size = segment.sums.active;
      for (const SnapshotBlock& block : taken.blocks_of(segment)) {
        BlockInfo each;
        each.size = block.bytes;
        each.requested_size = block.requested;
        each.allocated = block.live;
        each.active = block.live || block.waiting;
        if (block.live)
          each.context_when_allocated = history_.context_of(reinterpret_cast<void*>(block.address));  // NOLINT
        info.blocks.push_back(std::move(each));
      }
      out.segments.push_back(std::move(info));
    }
  });
  return out;
}

cca::SnapshotInfo CudaAllocator::snapshot(c10::MempoolId_t pool, bool include_traces) {
  cca::SnapshotInfo out = picture(pool);
  const int devices = device_count_.load();
  out.device_traces.resize(static_cast<std::size_t>(devices));
  if (include_traces) {
    out.device_traces = history_.entries(devices);
    out.external_annotations = history_.annotations();
  }
  out.config_metadata.expandable_segments = true;
  out.config_metadata.last_allocator_settings = "mempool";
  if (!history_.is_on()) return out;
  // For the next snapshot.
  for_each_device([&](int i, Device& device) {
    const auto active = static_cast<std::size_t>(device.core.stats().active.all.bytes.current);
    history_.add(TraceEntry::SNAPSHOT, i, 0, active, nullptr, pool, history_.gather(RecordContext::ALLOC), "");
  });
  return out;
}

// ---- history -----------------------------------------------------------------------------------------------------

std::shared_ptr<c10::GatheredContext> CudaAllocator::getContextForPointer(const void* address) {
  return history_.context_of(address);
}

void CudaAllocator::recordHistory(bool enabled, cca::CreateContextFn recorder, std::size_t most_entries,
                                  cca::RecordContext when, bool clear, const std::vector<std::string>& skipped) {
  history_.record(enabled, recorder, most_entries, when, clear, skipped);
  update_listeners();
}

// A device that is made from here on listens by itself.
void CudaAllocator::update_listeners() {
  const std::lock_guard guard(making_);
  for_each_device(
      [this](int, Device& device) { device.core.observers().listen(history_.is_on() ? &device.listener : nullptr); });
}

void CudaAllocator::recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata) {
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  history_.annotate(metadata, device);
}

void CudaAllocator::pushCompileContext(std::string& text) { CudaHistory::compile_contexts().push_back(text); }

void CudaAllocator::popCompileContext() {
  if (!CudaHistory::compile_contexts().empty()) CudaHistory::compile_contexts().pop_back();
}

void CudaAllocator::annotateMemory(const void* address, const std::string& text) {
  const CachingAllocator* const core = owner_of(address);
  TORCH_CHECK(core != nullptr, "invalid device pointer: ", address);
  const BackedRange range = backed_range_of(address);
  const int i = number_of(core);
  TORCH_CHECK(i >= 0, "invalid device pointer: ", address);
  history_.add(kAnnotate, i, reinterpret_cast<std::size_t>(address), block_bytes(address), stream_of(range.stream),
               range.family->framework_id, history_.gather(RecordContext::ALLOC), text);
}

void CudaAllocator::note_mapping(int device, bool mapped, void* address, std::size_t bytes) {
  if (!history_.is_on()) return;
  try {
    history_.add(mapped ? TraceEntry::SEGMENT_MAP : TraceEntry::SEGMENT_UNMAP, device,
                 reinterpret_cast<std::size_t>(address), bytes, nullptr, {0, 0}, nullptr, "");
  } catch (const std::exception&) {  // an entry less
  }
}

void CudaAllocator::attachOutOfMemoryObserver(cca::OutOfMemoryObserver observer) {
  const std::lock_guard guard(observers_mutex_);
  oom_observers_.push_back(std::move(observer));
}

void CudaAllocator::tell_observers(TorchAllocator& to) {
  const std::lock_guard guard(observers_mutex_);
  for (const auto& observer : oom_observers_) to.attachOutOfMemoryObserver(observer);
  history_.tell(to);
}

// For a policy of torch's own that rejects requests before they are tried. mempool has none: it is never called.
void CudaAllocator::attachOomRejectionObserver(OomRejectionObserver) {}

void CudaAllocator::attachAllocatorTraceTracker(cca::AllocatorTraceTracker tracker) {
  history_.attach(std::move(tracker));
  update_listeners();
}

}  // namespace mempool::torch_cuda
