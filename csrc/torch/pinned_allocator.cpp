#include "torch/pinned_allocator.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "backend/cuda_driver.h"
#include "backend/pinned_device.h"
#include "common/expects.h"
#include "core/allocator/found_block.h"
#include "torch/cuda_capture.h"
#include "torch/cuda_functions.h"
#include "torch/cuda_stats.h"
#include "torch/pinned_graphs.h"

namespace mempool::torch_pinned {
namespace {

CachingAllocator* g_device = nullptr;     // set once, before the first allocation
at::HostAllocator* g_previous = nullptr;  // likewise
GraphBlocks* g_graphs = nullptr;          // likewise
std::atomic<bool> g_enabled{false};

// The deleter of all our blocks: a block's context is its address. torch's own blocks have torch's. A forked child has
// the contents and cannot give the memory back.
void deleter(void* block) {
  if (block == nullptr || CudaDriver::is_forked() || g_graphs->keep(block)) return;
  g_device->deallocate(block);
}

bool is_ours(const void* address) noexcept { return address != nullptr && owner_of(address) == g_device; }

void* allocate_block(std::size_t bytes, const GraphBlocks::Destination& to) {
  TORCH_CHECK(!CudaDriver::is_forked(), torch_cuda::kRefusalInChild);
  try {
    return to.pool != nullptr ? g_graphs->allocate(to, bytes) : g_device->allocate(bytes);
  } catch (const OutOfMemory& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
  } catch (const PoolStateError& error) {
    TORCH_CHECK(false, error.what());
  }
}

// Whether it is a block of ours that begins there, which is not reused now before the stream's work is done.
bool use_on(void* block, const c10::cuda::CUDAStream& stream) {
  if (!is_ours(block)) return false;
  const auto handle = reinterpret_cast<std::uint64_t>(stream.stream());
  if (!g_device->add_use(block, pinned_stream(stream.device_index(), handle))) return false;
  if (torch_cuda::is_captured(stream.stream(), /*unless_told=*/false)) g_graphs->note_use(block);
  return true;
}

c10::CachingAllocator::DurationStat to_torch(const PinnedMemory::Times& times) {
  c10::CachingAllocator::DurationStat out;
  out.total = times.total_us;
  out.max = times.most_us;
  out.min = times.least_us;
  out.count = times.count;
  return out;
}

class PinnedAllocator final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const GraphBlocks::Destination to = g_graphs->route();
    const bool is_ours = to.pool != nullptr || (is_enabled() && !to.is_elsewhere);
    if (!is_ours) return g_previous->allocate(bytes);
    void* const block = bytes > 0 ? allocate_block(bytes, to) : nullptr;
    return {block, block, &deleter, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

  // A view has the block's context, and an alias of a whole tensor the block's address. What has neither is not
  // recorded, as torch's own allocator has it. Blocks from before enable() are torch's.
  bool record_event(void* address, void* context, c10::Stream stream) override {
    if (CudaDriver::is_forked()) return false;
    if (!is_ours(address) && !is_ours(context)) return g_previous->record_event(address, context, stream);
    const c10::cuda::CUDAStream used(stream);
    return use_on(context, used) || use_on(address, used);
  }

  // Without a wait for streams that still use freed blocks, as torch's own.
  void empty_cache() override {
    g_previous->empty_cache();
    if (CudaDriver::is_forked()) return;
    g_device->trim(0, /*may_wait=*/false);
    g_device->arenas().release(SIZE_MAX, /*may_wait=*/true);
  }

  at::HostStats get_stats() override {
    if (!is_enabled()) return g_previous->get_stats();
    const DeviceStats stats = g_device->stats();
    const PinnedMemory::Figures figures = pinned_memory().figures();
    at::HostStats out;
    out.active_requests = torch_cuda::to_torch(stats.active.all.count);
    out.active_bytes = torch_cuda::to_torch(stats.active.all.bytes);
    out.allocations = torch_cuda::to_torch(stats.segments.all);
    out.allocated_bytes = torch_cuda::to_torch(stats.reserved_bytes.all);
    out.host_alloc_time = to_torch(figures.locking);
    out.host_free_time = to_torch(figures.unlocking);
    out.num_host_alloc = stats.commits;
    out.num_host_free = stats.decommits;
    const std::size_t sizes = std::min(out.bucket_allocation.size(), figures.locked_by_size.size());
    std::copy_n(figures.locked_by_size.begin(), sizes, out.bucket_allocation.begin());
    return out;
  }
  void reset_accumulated_stats() override {
    g_previous->reset_accumulated_stats();
    g_device->reset_sums();
    pinned_memory().reset_figures();
  }
  void reset_peak_stats() override {
    g_previous->reset_peak_stats();
    g_device->reset_peaks();
  }

  void begin_allocate_to_pool(c10::MempoolId_t pool, std::function<bool(c10::Stream)> filter) override {
    g_graphs->begin(pool, std::move(filter), is_enabled());
  }
  void end_allocate_to_pool(c10::MempoolId_t pool) override { g_graphs->end(pool); }
  void release_pool(c10::MempoolId_t pool) override { g_graphs->release(pool); }
};

// A capture that mempool has not seen begin is none that it can keep blocks for.
void check_before_first() {
  auto* const cuda = c10::cuda::CUDACachingAllocator::get();
  const int device = cuda != nullptr && cuda->initialized() ? torch_cuda::captured_device(*cuda) : -1;
  if (device >= 0) torch_cuda::refuse_in_capture(device, "enable(\"pinned\")");
}

}  // namespace

void enable(CachingAllocator& device) {
  MEMPOOL_EXPECTS(g_device == nullptr || g_device == &device);
  static std::mutex installing;
  const std::lock_guard guard(installing);
  if (g_device == nullptr) {
    check_before_first();
    static auto* const allocator = new PinnedAllocator;  // immortal: tensors may outlive static destruction
    g_previous = at::getHostAllocator(c10::DeviceType::CUDA);
    g_graphs = new GraphBlocks(device, *g_previous);
    g_device = &device;
    g_enabled.store(true);
    at::setHostAllocator(c10::DeviceType::CUDA, allocator, /*priority=*/255);
    return;
  }
  g_enabled.store(true);
}

void disable() noexcept { g_enabled.store(false); }

bool is_enabled() noexcept { return g_enabled.load(std::memory_order_relaxed); }

}  // namespace mempool::torch_pinned
