// Blocks: how torch gets them, gives them back, and what it hears when there is none.
#include "torch/cuda_allocator.h"

#include <c10/core/impl/GPUTrace.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>

#include "backend/cuda_memory.h"
#include "common/errors.h"
#include "core/allocator/found_block.h"
#include "torch/cuda_capture.h"
#include "torch/cuda_functions.h"
#include "torch/cuda_settings.h"
#include "torch/cuda_source_calls.h"

namespace mempool::torch_cuda {
namespace {

std::atomic<CudaAllocator*> g_installed{nullptr};
std::atomic<bool> g_is_child{false};

StreamId id_of(cudaStream_t stream) { return reinterpret_cast<StreamId>(stream); }

void deleter(void* address) { g_installed.load(std::memory_order_relaxed)->raw_delete(address); }

int current_device() {
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  return device;
}

// What torch's own callbacks free: memory that it keeps for other processes, say.
bool run_free_memory_callbacks() noexcept {
  bool freed = false;
  for (const auto& name : c10::FreeCudaMemoryCallbacksRegistry()->Keys()) {
    try {
      freed |= c10::FreeCudaMemoryCallbacksRegistry()->Create(name)->Execute();
    } catch (const std::exception&) {  // it has freed nothing; the request's own error is the one to raise
    }
  }
  return freed;
}

[[noreturn]] void refuse_in_child() { TORCH_CHECK(false, kRefusalInChild); }

}  // namespace

std::size_t limit_of_fraction(int device, double fraction) {
  return fraction == 1 ? kNoLimit : static_cast<std::size_t>(fraction * static_cast<double>(cuda_device_bytes(device)));
}

void refuse_within_source() {
  TORCH_CHECK(!source_calls::is_inside(),
              "mempool: the allocator of a torch.cuda.MemPool asks torch's CUDA allocator for something while it is "
              "asked for memory itself. Ask before, or afterwards; mempool empties its cache when memory is short.");
}

CudaAllocator* installed() noexcept { return g_installed.load(std::memory_order_acquire); }
bool is_forked_child() noexcept { return g_is_child.load(std::memory_order_relaxed); }

void observe_mapping(int device, bool mapped, void* address, std::size_t bytes) noexcept {
  if (CudaAllocator* const allocator = installed()) allocator->note_mapping(device, mapped, address, bytes);
}

void set_installed(CudaAllocator& allocator) {
  g_installed.store(&allocator, std::memory_order_release);
  CudaMemory::set_observer(observe_mapping);
  // A parent that has not used CUDA leaves it to its children.
  pthread_atfork(nullptr, nullptr, [] { g_is_child.store(g_is_child.load() || installed()->initialized()); });
}

// ---- devices -----------------------------------------------------------------------------------------------------

// Devices are made when they are first used: a context on one takes memory there.
void CudaAllocator::init(int device_count) {
  int known = device_count_.load();
  const int count = std::min(device_count, kMaxCudaDevices);
  while (known < count && !device_count_.compare_exchange_weak(known, count)) continue;
}

CudaAllocator::Device& CudaAllocator::device_at(int device) {
  refuse_within_source();
  if (Device* const found = find_device(device)) return *found;
  if (device_count_.load() == 0) init(c10::cuda::device_count());
  TORCH_CHECK(device >= 0 && device < device_count_.load(), "mempool: there is no CUDA device ", device,
              ": torch sees ", device_count_.load());
  const std::lock_guard guard(making_);
  auto& entry = devices_[static_cast<std::size_t>(device)];
  if (Device* const made = entry.load()) return *made;
  try {
    Options options;
    parse_conf(options, conf_, cuda_device_bytes(device));
    CachingAllocator& core = cuda_device(device, options);
    core.set_relief_hook(relieve);
    const auto [share, replaces] = memory_fraction();
    if (share < 1 || replaces) {
      const std::size_t allowed = limit_of_fraction(device, share);
      core.ledger().force_limit(replaces ? allowed : std::min(core.ledger().limit(), allowed));
    }
    auto* const made = new Device(core, history_, device);
    if (history_.is_on()) core.observers().listen(&made->listener);
    entry.store(made, std::memory_order_release);
    if (earlier_.has_served()) adopt_device(device, *made);
    return *made;
  } catch (const ConfigError& error) {
    TORCH_CHECK(false, "mempool: ", error.what());
  }
}

// ---- beside the earlier allocator --------------------------------------------------------------------------------

void CudaAllocator::adopt_devices() {
  const std::lock_guard guard(making_);
  for_each_device([this](int i, Device& device) { adopt_device(i, device); });
}

void CudaAllocator::recount() noexcept {
  for_each_device([](int, Device& device) { (void)device.core.outside_bytes(); });
}

// Expects that the earlier allocator has served: it may hold memory there, and other devices may have been let in by it
// alone.
void CudaAllocator::adopt_device(int index, Device& device) {
  device.core.set_outside_hook(earlier_bytes);
  (void)device.core.outside_bytes();
  for (int other = 0; other < device_count_.load(); ++other) {
    int can_access = 0;
    if (other != index && cudaDeviceCanAccessPeer(&can_access, other, index) == cudaSuccess && can_access != 0) {
      cuda_let_in(index, other);
    }
  }
}

std::size_t CudaAllocator::earlier_bytes(CachingAllocator& core) noexcept {
  const int i = installed()->number_of(&core);
  return i < 0 || is_forked_child() ? 0 : installed()->earlier_.held_bytes(i);
}

bool CudaAllocator::relieve(CachingAllocator& core) noexcept {
  const bool is_relieved = run_free_memory_callbacks();
  int captured_device = 0;
  if (installed()->number_of(&core) >= 0 && !installed()->is_capturing(captured_device)) {
    installed()->earlier_.try_empty_cache();
  }
  return is_relieved;
}

bool CudaAllocator::is_capturing(int& device) {
  bool found = false;
  for_each_device([&](int i, Device& each) {
    for (cudaStream_t stream : each.pools.routed_streams()) {
      if (found || !is_captured(stream)) continue;
      found = true;
      device = i;
    }
  });
  return found;
}

bool CudaAllocator::holds_memory() const {
  bool found = false;
  for_each_device([&](int, const Device& device) { found |= device.core.ledger().held() > 0; });
  return found;
}

// ---- allocate ----------------------------------------------------------------------------------------------------

c10::DataPtr CudaAllocator::allocate(std::size_t bytes) {
  const int device = current_device();
  void* address = nullptr;
  if (bytes != 0) {
    address = allocate_on(device, bytes, c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)));
  }
  return {address, address, &deleter, c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))};
}

void* CudaAllocator::raw_alloc(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  const int device = current_device();
  return allocate_on(device, bytes, c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)));
}

void* CudaAllocator::raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) {
  return bytes == 0 ? nullptr : allocate_on(current_device(), bytes, stream);
}

void* CudaAllocator::allocate_on(int index, std::size_t bytes, cudaStream_t stream) {
  Device* const device = find_device(index);
  if (device == nullptr || device->pools.is_routing() || source_calls::any() || is_forked_child() ||
      c10::impl::GPUTrace::haveState || c10::memoryProfilingEnabled()) [[unlikely]] {
    return allocate_slow(index, bytes, stream);
  }
  try {
    return device->core.allocate(bytes, id_of(stream));
  } catch (const OutOfMemory& error) {
    report_out_of_memory(index, bytes, stream, nullptr, error);
  } catch (const PoolStateError& error) {
    TORCH_CHECK(false, error.what());
  }
}

// From the private pool if there is one.
void* CudaAllocator::allocate_any(Device& device, std::size_t bytes, cudaStream_t stream, const PrivatePool* pool) {
  if (pool == nullptr) return device.core.allocate(bytes, id_of(stream));
  // What a captured graph writes to stays, free or not.
  if (!pool->family->captured && is_captured(stream)) pool->family->captured = true;
  constexpr std::size_t kHandle = std::size_t{2} << 20;
  if (pool->no_split) bytes = (bytes + kHandle - 1) / kHandle * kHandle;
  return device.core.allocate_from(*pool->family, bytes, id_of(stream));
}

bool CudaAllocator::is_routed(cudaStream_t stream) {
  Device* const device = find_device(current_device());
  return device != nullptr && device->pools.is_routing() && device->pools.route(stream).pool != nullptr;
}

void* CudaAllocator::allocate_slow(int index, std::size_t bytes, cudaStream_t stream) {
  if (is_forked_child()) refuse_in_child();
  Device& device = device_at(index);
  free_postponed();
  const PrivatePools::Destination to =
      device.pools.is_routing() ? device.pools.route(stream) : PrivatePools::Destination{};
  if (to.is_elsewhere) {
    void* const given = earlier_->raw_alloc_with_stream(bytes, stream);
    (void)device.core.outside_bytes();  // counts it
    return given;
  }
  void* address = nullptr;
  try {
    address = allocate_any(device, bytes, stream, to.pool.get());
  } catch (const OutOfMemory& error) {
    report_out_of_memory(index, bytes, stream, to.pool.get(), error);
  } catch (const PoolStateError& error) {
    TORCH_CHECK(false, error.what());
  }
  const std::size_t rounded = block_bytes(address);
  report_to_profiler(index, address, static_cast<std::int64_t>(rounded));
  if (const c10::impl::PyInterpreter* const interpreter = c10::impl::GPUTrace::get_trace()) [[unlikely]] {
    (*interpreter)->trace_gpu_memory_allocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(address));
  }
  return address;
}

void CudaAllocator::report_to_profiler(int index, void* address, std::int64_t bytes) {
  if (!c10::memoryProfilingEnabled()) return;
  const DeviceStats stats = device_at(index).core.stats();
  c10::reportMemoryUsageToProfiler(address, bytes, static_cast<std::size_t>(stats.blocks.all.bytes.current),
                                   static_cast<std::size_t>(stats.reserved_bytes.all.current),
                                   c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)));
}

// ---- no memory ---------------------------------------------------------------------------------------------------

namespace {

constexpr std::size_t kExabyte = std::size_t{1} << 60;

// torch's words, then mempool's.
std::string message_of(int index, std::size_t bytes, std::size_t total, std::size_t free, const DeviceStats& stats,
                       const OutOfMemory& error) {
  const auto size = [](std::size_t amount) { return c10::CachingAllocator::format_size(amount); };
  const auto allocated = static_cast<std::size_t>(stats.blocks.all.bytes.current);
  const auto reserved = static_cast<std::size_t>(stats.reserved_bytes.all.current);
  const std::string asked = bytes < kExabyte ? size(bytes) : "more than 1EB memory";
  return "CUDA out of memory. Tried to allocate " + asked + ". GPU " + std::to_string(index) +
         " has a total capacity of " + size(total) + " of which " + size(free) + " is free. Of the allocated memory " +
         size(allocated) + " is allocated by PyTorch, and " + size(reserved > allocated ? reserved - allocated : 0) +
         " is reserved by PyTorch but unallocated.\n" + error.what();
}

}  // namespace

void CudaAllocator::report_out_of_memory(int index, std::size_t bytes, cudaStream_t stream, const PrivatePool* pool,
                                         const OutOfMemory& error) {
  Device& device = device_at(index);
  std::size_t free = 0;
  std::size_t total = 0;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const DeviceStats stats = device.core.stats();
  const auto allocated = static_cast<std::size_t>(stats.blocks.all.bytes.current);
  history_.add(TraceEntry::OOM, index, free, bytes, stream, pool != nullptr ? pool->id : c10::MempoolId_t{0, 0},
               history_.gather(RecordContext::ALLOC), CudaHistory::metadata());
  std::vector<cca::OutOfMemoryObserver> observers;
  {
    const std::lock_guard observers_guard(observers_mutex_);
    observers = oom_observers_;
  }
  for (const auto& observer : observers) observer(index, bytes, total, free);
  c10::reportOutOfMemoryToProfiler(static_cast<std::int64_t>(bytes), allocated,
                                   static_cast<std::size_t>(stats.reserved_bytes.all.current),
                                   c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)));
  TORCH_CHECK_WITH(OutOfMemoryError, false, message_of(index, bytes, total, free, stats, error));
}

// ---- free --------------------------------------------------------------------------------------------------------

c10::DeleterFnPtr CudaAllocator::raw_deleter() const { return &deleter; }

void CudaAllocator::raw_delete(void* address) {
  CachingAllocator* const core = owner_of(address);
  if (core == nullptr || source_calls::any() || !is_caching_.load(std::memory_order_relaxed) || is_forked_child() ||
      c10::impl::GPUTrace::haveState || c10::memoryProfilingEnabled()) [[unlikely]] {
    free_slow(address);
    return;
  }
  TORCH_CHECK(core->deallocate(address), "invalid device pointer: ", address);
}

void CudaAllocator::free_slow(void* address) {
  if (address == nullptr || is_forked_child()) return;
  if (source_calls::is_inside()) return source_calls::postpone_free(address);
  free_postponed();
  free_now(address);
}

// Of blocks that went while the allocator of a MemPool was at work.
void CudaAllocator::free_postponed() {
  if (!source_calls::any()) return;
  for (void* address : source_calls::take_postponed()) free_now(address);
}

void CudaAllocator::free_now(void* address) {
  CachingAllocator* const core = owner_of(address);
  if (core == nullptr && earlier_.has_served()) return earlier_->raw_delete(address);
  if (const c10::impl::PyInterpreter* const interpreter = c10::impl::GPUTrace::get_trace()) [[unlikely]] {
    (*interpreter)->trace_gpu_memory_deallocation(c10::kCUDA, reinterpret_cast<std::uintptr_t>(address));
  }
  TORCH_CHECK(core != nullptr, "invalid device pointer: ", address);
  const int i = number_of(core);
  TORCH_CHECK(i >= 0, "invalid device pointer: ", address);
  const auto rounded = block_bytes(address);
  TORCH_CHECK(core->deallocate(address), "invalid device pointer: ", address);
  report_to_profiler(i, address, -static_cast<std::int64_t>(rounded));
  if (!is_caching_.load()) core->trim(0);
}

// ---- use on other streams ----------------------------------------------------------------------------------------

void CudaAllocator::recordStream(const c10::DataPtr& block, c10::cuda::CUDAStream stream) {
  // Empty, or somebody else's memory: an imported one, or a view that the user has made.
  if (block.get() == nullptr || block.get_deleter() != &deleter) return;
  use_on(block.get(), stream);
}

void CudaAllocator::use_on(void* address, c10::cuda::CUDAStream stream) {
  CachingAllocator* const core = owner_of(address);
  if (core == nullptr && earlier_.has_served()) return earlier_.record_stream(address, stream);
  // A copy between devices may be on a stream of either: the clock is that of the stream's own device.
  TORCH_CHECK(
      core != nullptr && core->add_use(address, device_at(stream.device_index()).core.clock_of(id_of(stream.stream()))),
      "invalid device pointer: ", address);
}

// ---- copies ------------------------------------------------------------------------------------------------------

void CudaAllocator::copy_data(void* to, const void* from, std::size_t bytes) const {
  C10_CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyKind::cudaMemcpyDeviceToDevice));
}

cudaError_t CudaAllocator::memcpyAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                       cudaStream_t stream, bool p2p_enabled) {
  // Without peer access memory that is mapped by handles needs the call that names both devices.
  if (p2p_enabled || to_device == from_device) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
  }
  return cudaMemcpyPeerAsync(to, to_device, from, from_device, bytes, stream);
}

}  // namespace mempool::torch_cuda
